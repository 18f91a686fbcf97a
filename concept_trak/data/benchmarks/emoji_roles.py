"""The 63 roles that Unicode has for a man and a woman of six tones each, with the word that captions have for each.

All 63 x 2 x 6 drawings are in each of the three styles. Unicode writes most of a person in one of two ways: a man or a
woman joined to an object (a cook: a man, a joiner, a pan), or a figure joined to a sign (a runner: a figure, a joiner,
the sign for a woman). The tone follows the first code point. Left out are appearances (six colours and forms of hair
and beard), and merfolk and the deaf, whose names are of another pattern.
"""

OBJECTS = {
    "artist": "1f3a8",
    "astronaut": "1f680",
    "cane": "1f9af",
    "clerk": "1f4bc",
    "cook": "1f373",
    "doctor": "2695",
    "farmer": "1f33e",
    "feeder": "1f37c",
    "firefighter": "1f692",
    "judge": "2696",
    "mechanic": "1f527",
    "pilot": "2708",
    "scientist": "1f52c",
    "scooter": "1f9bc",
    "singer": "1f3a4",
    "student": "1f393",
    "teacher": "1f3eb",
    "technologist": "1f4bb",
    "wheelchair": "1f9bd",
    "worker": "1f3ed",
}
"""By role, the object that a man or a woman is joined to: the feeder's is a baby's bottle, the worker's a factory."""
FIGURES = {
    "basketball": "26f9",
    "bow": "1f647",
    "builder": "1f477",
    "cartwheel": "1f938",
    "climber": "1f9d7",
    "cyclist": "1f6b4",
    "detective": "1f575",
    "elf": "1f9dd",
    "facepalm": "1f926",
    "fairy": "1f9da",
    "frown": "1f64d",
    "golfer": "1f3cc",
    "guard": "1f482",
    "haircut": "1f487",
    "handball": "1f93e",
    "juggler": "1f939",
    "kneeling": "1f9ce",
    "lotus": "1f9d8",
    "mage": "1f9d9",
    "massage": "1f486",
    "mountainbiker": "1f6b5",
    "officer": "1f46e",
    "okay": "1f646",
    "pout": "1f64e",
    "receptionist": "1f481",
    "refusal": "1f645",
    "rower": "1f6a3",
    "runner": "1f3c3",
    "sauna": "1f9d6",
    "shrug": "1f937",
    "standing": "1f9cd",
    "superhero": "1f9b8",
    "supervillain": "1f9b9",
    "surfer": "1f3c4",
    "swimmer": "1f3ca",
    "turban": "1f473",
    "tuxedo": "1f935",
    "vampire": "1f9db",
    "veil": "1f470",
    "volunteer": "1f64b",
    "walker": "1f6b6",
    "waterpolo": "1f93d",
    "weightlifter": "1f3cb",
}
"""By role, the figure that the sign for a man or a woman is joined to: the volunteer raises a hand."""
ROLES = tuple(sorted((*OBJECTS, *FIGURES)))
PEOPLE, SIGNS = ("1f468", "1f469"), ("2642", "2640")  # a man, a woman; the sign for either
TONES, JOINER = ("", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"), "200d"


def role_codes(role: str) -> tuple[str, ...]:
    """The code points of the 12 drawings of a role: those of a man, then those of a woman, each in six tones."""
    if role in OBJECTS:
        joined = [(person, OBJECTS[role]) for person in PEOPLE]
    else:
        joined = [(FIGURES[role], sign) for sign in SIGNS]
    return tuple("-".join(filter(None, (first, tone, JOINER, last))) for first, last in joined for tone in TONES)
