"""The things a scene can show: names, plurals, code points of their pictures, colours."""

from __future__ import annotations

from typing import Final

# name: code point of the picture ("-" joins several), as the picture files are named.
OBJECTS: Final[dict[str, str]] = {
    # animals
    "cat": "1f431",
    "dog": "1f436",
    "fox": "1f98a",
    "lion": "1f981",
    "tiger": "1f42f",
    "bear": "1f43b",
    "panda": "1f43c",
    "koala": "1f428",
    "pig": "1f437",
    "frog": "1f438",
    "monkey": "1f435",
    "rabbit": "1f430",
    "mouse": "1f42d",
    "cow": "1f42e",
    "unicorn": "1f984",
    "raccoon": "1f99d",
    "penguin": "1f427",
    "owl": "1f989",
    "chick": "1f425",
    "duck": "1f986",
    "parrot": "1f99c",
    "flamingo": "1f9a9",
    "turtle": "1f422",
    "snake": "1f40d",
    "whale": "1f433",
    "dolphin": "1f42c",
    "shark": "1f988",
    "octopus": "1f419",
    "crab": "1f980",
    "snail": "1f40c",
    "butterfly": "1f98b",
    "bee": "1f41d",
    "ladybug": "1f41e",
    "elephant": "1f418",
    "giraffe": "1f992",
    "zebra": "1f993",
    "hedgehog": "1f994",
    "dinosaur": "1f996",
    # food
    "apple": "1f34e",
    "banana": "1f34c",
    "watermelon": "1f349",
    "lemon": "1f34b",
    "pear": "1f350",
    "peach": "1f351",
    "cherry": "1f352",
    "strawberry": "1f353",
    "pineapple": "1f34d",
    "avocado": "1f951",
    "tomato": "1f345",
    "eggplant": "1f346",
    "carrot": "1f955",
    "corn": "1f33d",
    "broccoli": "1f966",
    "mushroom": "1f344",
    "bread": "1f35e",
    "croissant": "1f950",
    "cheese": "1f9c0",
    "hamburger": "1f354",
    "pizza": "1f355",
    "doughnut": "1f369",
    "cookie": "1f36a",
    "cupcake": "1f9c1",
    "lollipop": "1f36d",
    # plants and weather
    "cactus": "1f335",
    "tulip": "1f337",
    "rose": "1f339",
    "sunflower": "1f33b",
    "tree": "1f333",
    "sun": "2600-fe0f",
    "moon": "1f319",
    "star": "2b50",
    "cloud": "2601-fe0f",
    "rainbow": "1f308",
    "snowflake": "2744-fe0f",
    "snowman": "26c4",
    "fire": "1f525",
    "volcano": "1f30b",
    # vehicles and buildings
    "rocket": "1f680",
    "airplane": "2708-fe0f",
    "car": "1f697",
    "bus": "1f68c",
    "tractor": "1f69c",
    "bicycle": "1f6b2",
    "sailboat": "26f5",
    "house": "1f3e0",
    "castle": "1f3f0",
    "tent": "26fa",
    # things
    "balloon": "1f388",
    "guitar": "1f3b8",
    "trumpet": "1f3ba",
    "drum": "1f941",
    "bell": "1f514",
    "key": "1f511",
    "umbrella": "2602-fe0f",
    "crown": "1f451",
    "trophy": "1f3c6",
    "camera": "1f4f7",
    "telephone": "260e-fe0f",
    "candle": "1f56f-fe0f",
    "hammer": "1f528",
    "anchor": "2693",
    "bomb": "1f4a3",
    "basketball": "1f3c0",
    "football": "26bd",
    "ghost": "1f47b",
    "robot": "1f916",
    "skull": "1f480",
    "alien": "1f47d",
    "pumpkin": "1f383",
    "gift": "1f381",
}

COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (226, 61, 58),
    "orange": (250, 146, 46),
    "yellow": (252, 218, 74),
    "green": (76, 176, 86),
    "blue": (62, 122, 222),
    "purple": (144, 88, 196),
    "pink": (248, 158, 196),
    "brown": (140, 94, 66),
    "black": (38, 38, 44),
    "white": (250, 250, 250),
}

# shape: colour: code point. Only the combinations of which a picture exists.
SHAPES: Final[dict[str, dict[str, str]]] = {
    "heart": {
        "red": "2764-fe0f",
        "orange": "1f9e1",
        "yellow": "1f49b",
        "green": "1f49a",
        "blue": "1f499",
        "purple": "1f49c",
        "pink": "1fa77",
        "brown": "1f90e",
        "black": "1f5a4",
        "white": "1f90d",
    },
    "circle": {
        "red": "1f534",
        "orange": "1f7e0",
        "yellow": "1f7e1",
        "green": "1f7e2",
        "blue": "1f535",
        "purple": "1f7e3",
        "brown": "1f7e4",
        "black": "26ab",
        "white": "26aa",
    },
    "square": {
        "red": "1f7e5",
        "orange": "1f7e7",
        "yellow": "1f7e8",
        "green": "1f7e9",
        "blue": "1f7e6",
        "purple": "1f7ea",
        "brown": "1f7eb",
        "black": "2b1b",
        "white": "2b1c",
    },
    "book": {
        "red": "1f4d5",
        "orange": "1f4d9",
        "green": "1f4d7",
        "blue": "1f4d8",
    },
}

_PLURALS: Final[dict[str, str]] = {"mouse": "mice", "broccoli": "broccolis"}


def plural(name: str) -> str:
    """The plural of an object's or a shape's name."""
    if name in _PLURALS:
        return _PLURALS[name]
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    if name.endswith("o") and name in {"tomato", "volcano"}:
        return name + "es"
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name + "s"


def article(word: str) -> str:
    """The article, "a" or "an", that the word which follows wants."""
    return "an" if word[0] in "aeiou" and not word.startswith("uni") else "a"
