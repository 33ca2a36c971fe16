"""What benchmarks with a page of their own share: evaluations, the command, marked places."""
