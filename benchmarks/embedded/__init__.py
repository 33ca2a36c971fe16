"""The paper's Tables 6 to 10 with the embedded model: evaluations, and tables made from them."""
