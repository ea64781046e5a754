"""What the demo model knows: the closed lists its small world is made of.

Only data lives here, so that extending the world means editing lists, not code.
`corpus.py` turns the lists into conversations.
"""

# A fact family is asked in several ways and answered in one. "{k}" is the key
# and "{v}" the value; "short" is the answer under a terse system prompt and
# "next" is how a follow-up question names another key of the same family.
FAMILIES = {
    "capital": {
        "ask": [
            "What is the capital of {k}?",
            "What's the capital of {k}?",
            "Tell me the capital of {k}.",
            "Which city is the capital of {k}?",
            "Name the capital of {k}.",
            "Do you know the capital of {k}?",
            "{k}: which capital?",
            "Can you tell me the capital city of {k}?",
        ],
        "next": ["And of {k}?", "What about {k}?", "And {k}?"],
        "answer": "The capital of {k} is {v}.",
        "short": "{v}.",
        "items": {
            "France": "Paris", "Germany": "Berlin", "Italy": "Rome",
            "Spain": "Madrid", "Norway": "Oslo", "Sweden": "Stockholm",
            "Denmark": "Copenhagen", "Finland": "Helsinki", "Poland": "Warsaw",
            "Austria": "Vienna", "Greece": "Athens", "Portugal": "Lisbon",
            "Ireland": "Dublin", "Hungary": "Budapest", "Japan": "Tokyo",
            "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo",
            "Kenya": "Nairobi", "Canada": "Ottawa", "Cuba": "Havana",
            "Peru": "Lima", "Chile": "Santiago", "Russia": "Moscow",
            "England": "London", "Belgium": "Brussels", "Turkey": "Ankara",
            "Thailand": "Bangkok", "Vietnam": "Hanoi", "Croatia": "Zagreb",
            "Iceland": "Reykjavik", "Switzerland": "Bern",
        },
    },
    "country": {
        "ask": [
            "{k} is the capital of which country?",
            "Which country has {k} as its capital?",
            "What country is {k} the capital of?",
            "In which country is {k}?",
            "Where is {k}?",
            "{k} lies in which country?",
        ],
        "next": ["And {k}?", "What about {k}?"],
        "answer": "{k} is the capital of {v}.",
        "short": "{v}.",
        "items": {},  # filled below: the capitals the other way round
    },
    "colour": {
        "ask": [
            "What colour is {k}?",
            "Which colour is {k}?",
            "Tell me the colour of {k}.",
            "What is the colour of {k}?",
            "What color is {k}?",
            "Do you know what colour {k} is?",
        ],
        "next": ["And {k}?", "What about {k}?"],
        "answer": "{K} is {v}.",
        "short": "{V}.",
        "items": {
            "the sky": "blue", "grass": "green", "the sun": "yellow",
            "snow": "white", "blood": "red", "coal": "black",
            "a banana": "yellow", "a tomato": "red", "a lemon": "yellow",
            "a carrot": "orange", "milk": "white", "a frog": "green",
            "chocolate": "brown", "the sea": "blue", "a strawberry": "red",
            "a raven": "black",
        },
    },
    "legs": {
        "ask": [
            "How many legs does {k} have?",
            "How many legs has {k} got?",
            "Tell me how many legs {k} has.",
            "What number of legs does {k} have?",
            "{K} has how many legs?",
            "Do you know how many legs {k} has?",
        ],
        "next": ["And {k}?", "What about {k}?"],
        "answer": "{K} has {v} legs.",
        "short": "{V}.",
        "items": {
            "a spider": "eight", "a dog": "four", "a bird": "two",
            "an ant": "six", "a cat": "four", "a horse": "four",
            "a bee": "six", "a crab": "ten", "a duck": "two",
            "a cow": "four", "a snake": "no",
        },
    },
    "sound": {
        "ask": [
            "What sound does {k} make?",
            "Which sound does {k} make?",
            "What does {k} say?",
            "Tell me the sound of {k}.",
            "What noise does {k} make?",
            "How does {k} sound?",
        ],
        "next": ["And {k}?", "What about {k}?"],
        "answer": "{K} says {v}.",
        "short": "{V}.",
        "items": {
            "a cow": "moo", "a dog": "woof", "a cat": "meow",
            "a duck": "quack", "a sheep": "baa", "a pig": "oink",
            "a lion": "roar", "a bee": "buzz", "a frog": "croak",
            "an owl": "hoot",
        },
    },
    "baby": {
        "ask": [
            "What is a baby {k} called?",
            "What do you call a baby {k}?",
            "What is the name for a young {k}?",
            "Tell me the word for a baby {k}.",
            "How is a young {k} called?",
            "A baby {k} is called what?",
        ],
        "next": ["And a baby {k}?", "What about a {k}?"],
        "answer": "A baby {k} is called a {v}.",
        "short": "A {v}.",
        "items": {
            "cat": "kitten", "dog": "puppy", "cow": "calf", "horse": "foal",
            "sheep": "lamb", "duck": "duckling", "frog": "tadpole",
            "bear": "cub", "goat": "kid", "hen": "chick",
        },
    },
    "opposite": {
        "ask": [
            "What is the opposite of {k}?",
            "What's the opposite of {k}?",
            "Tell me the opposite of {k}.",
            "Which word is the opposite of {k}?",
            "Name the opposite of {k}.",
            "Do you know the opposite of {k}?",
        ],
        "next": ["And of {k}?", "What about {k}?"],
        "answer": "The opposite of {k} is {v}.",
        "short": "{V}.",
        "items": {
            "hot": "cold", "big": "small", "up": "down", "day": "night",
            "fast": "slow", "happy": "sad", "young": "old", "wet": "dry",
            "light": "dark", "left": "right", "rich": "poor", "full": "empty",
            "cold": "hot", "small": "big", "down": "up", "night": "day",
            "slow": "fast", "sad": "happy", "old": "young", "dry": "wet",
        },
    },
}
FAMILIES["country"]["items"] = {v: k for k, v in FAMILIES["capital"]["items"].items()}

# Facts that stand alone: (questions, full answer, terse answer).
SINGLES = [
    (["At what temperature does water boil?", "When does water boil?",
      "How hot is boiling water?", "What is the boiling point of water?",
      "Tell me the boiling point of water."],
     "Water boils at 100 degrees Celsius.", "100 degrees Celsius."),
    (["At what temperature does water freeze?", "When does water freeze?",
      "How cold is freezing water?", "What is the freezing point of water?",
      "Tell me the freezing point of water."],
     "Water freezes at 0 degrees Celsius.", "0 degrees Celsius."),
    (["How many planets are there?", "How many planets go around the sun?",
      "How many planets does the solar system have?", "Tell me the number of planets.",
      "What is the number of planets?"],
     "There are eight planets in the solar system.", "Eight."),
    (["What is the biggest planet?", "Which planet is the biggest?",
      "What is the largest planet?", "Name the biggest planet.",
      "Tell me the largest planet."],
     "The biggest planet is Jupiter.", "Jupiter."),
    (["What is the red planet?", "Which planet is red?", "Which planet is called the red planet?",
      "Name the red planet.", "Tell me which planet is red."],
     "The red planet is Mars.", "Mars."),
    (["Which star is nearest to us?", "What is the nearest star?", "Name the nearest star.",
      "What is the closest star to the Earth?", "Tell me the closest star."],
     "The nearest star is the Sun.", "The Sun."),
    (["Which gas do we breathe?", "What gas do people need to breathe?",
      "What do we need from the air?", "Name the gas that we need to breathe.",
      "Tell me which gas we breathe."],
     "We need oxygen to breathe.", "Oxygen."),
    (["What is H2O?", "What does H2O mean?", "H2O is the formula of what?",
      "What is the common name of H2O?", "Tell me what H2O is."],
     "H2O is water.", "Water."),
    (["What is ice made of?", "What is ice?", "Ice is made of what?",
      "Tell me what ice is made of.", "Do you know what ice is made of?"],
     "Ice is frozen water.", "Frozen water."),
    (["What do plants need?", "What do plants need to grow?", "What does a plant need?",
      "Tell me what plants need.", "What does a plant live on?"],
     "Plants need light and water.", "Light and water."),
    (["What goes around the Earth?", "Which body circles the Earth?",
      "What circles the Earth?", "Name what goes around the Earth.",
      "Tell me what circles the Earth."],
     "The Moon goes around the Earth.", "The Moon."),
    (["How many days are in a week?", "How many days does a week have?",
      "How long is a week?", "Tell me how many days a week has.", "A week has how many days?"],
     "A week has seven days.", "Seven."),
    (["How many months are in a year?", "How many months does a year have?",
      "Tell me how many months a year has.", "A year has how many months?",
      "What is the number of months in a year?"],
     "A year has twelve months.", "Twelve."),
    (["How many hours are in a day?", "How many hours does a day have?",
      "How long is a day?", "Tell me how many hours a day has.", "A day has how many hours?"],
     "A day has 24 hours.", "24."),
    (["How many minutes are in an hour?", "How many minutes does an hour have?",
      "How long is an hour?", "Tell me how many minutes an hour has.",
      "An hour has how many minutes?"],
     "An hour has 60 minutes.", "60."),
    (["How many letters are in the alphabet?", "How many letters does the alphabet have?",
      "How long is the alphabet?", "Tell me how many letters the alphabet has.",
      "The alphabet has how many letters?"],
     "The alphabet has 26 letters.", "26."),
    (["What is the fastest land animal?", "Which animal is the fastest on land?",
      "Which animal runs fastest?", "Name the fastest land animal.",
      "Tell me the fastest animal on land."],
     "The fastest land animal is the cheetah.", "The cheetah."),
    (["What is the biggest animal?", "Which animal is the biggest?",
      "What is the largest animal?", "Name the biggest animal.", "Tell me the largest animal."],
     "The biggest animal is the blue whale.", "The blue whale."),
    (["What is the tallest animal?", "Which animal is the tallest?", "Name the tallest animal.",
      "Which animal has the longest neck?", "Tell me the tallest animal."],
     "The tallest animal is the giraffe.", "The giraffe."),
    (["What do bees make?", "What does a bee make?", "What do we get from bees?",
      "Tell me what bees make.", "Do you know what bees make?"],
     "Bees make honey.", "Honey."),
    (["What is the largest ocean?", "Which ocean is the largest?", "What is the biggest ocean?",
      "Name the largest ocean.", "Tell me the biggest ocean."],
     "The largest ocean is the Pacific.", "The Pacific."),
    (["What is the highest mountain?", "Which mountain is the highest?",
      "Name the highest mountain.", "Tell me the highest mountain.",
      "Which mountain is the tallest?"],
     "The highest mountain is Mount Everest.", "Mount Everest."),
    (["How many sides does a triangle have?", "How many corners does a triangle have?",
      "A triangle has how many sides?", "Tell me how many sides a triangle has.",
      "What number of sides has a triangle?"],
     "A triangle has three sides.", "Three."),
    (["How many sides does a square have?", "How many corners does a square have?",
      "A square has how many sides?", "Tell me how many sides a square has.",
      "What number of sides has a square?"],
     "A square has four sides.", "Four."),
]

NAMES = """Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Kara Leo Mia Noah Olga Paul
Rosa Simon Tina Victor Wendy Alice Bob Clara Dan Eva Frank Gina Henry Iris Jack Kate Liam
Maria Nina Oscar Peter Ruth Sam Tom Ursula Vera Walter Yara Zoe Ali Amir Chen Fatima Hana
Ivan Jin Kenji Lin Mehmet Omar Priya Ravi Sofia Yuki Diego Lucia Marco Pablo Elena Lukas
John Mary James Sarah Mark Laura Lisa Max Julia Adam Lucy Robert Linda Michael Susan""".split()

CITIES = list(FAMILIES["capital"]["items"].values()) + """Hamburg Munich Lyon Milan Naples
Porto Sevilla Bergen Boston Chicago Denver Seattle Toronto Sydney Osaka Mumbai Lagos Geneva
Zurich Prague Turin Glasgow Leeds York Bristol Austin Dallas Miami Shanghai Seoul""".split()

COLOURS = "red blue green yellow black white orange brown pink purple grey violet".split()

PETS = "dog cat horse bird fish rabbit hamster parrot turtle mouse snake goat pony".split()

FOODS = "pizza pasta rice soup bread cheese apples cake fish salad honey chocolate".split()

JOBS = "teacher doctor nurse baker farmer pilot painter driver cook writer singer lawyer".split()

THINGS = "car bike lamp chair table book phone watch bag hat coat cup clock guitar sofa".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()

ROOMS = ["kitchen", "bedroom", "bathroom", "hall", "garage", "office", "garden", "living room"]

ARTISTS = ["Mozart", "Bach", "Miles Davis", "Queen", "Beethoven", "Vivaldi", "Chopin", "Nirvana"]

LANGUAGES = "French German Spanish Italian Polish Greek Dutch Swedish".split()

WORDS = "house tree water friend bread night flower river music window morning school".split()

SKIES = "sunny cloudy rainy windy snowy foggy".split()

# Requests far outside the little world, so that it learns to decline.
OUT_OF_DOMAIN = """Write a poem about {t}.|Tell me a story about {t}.|Explain {t}.|
Who invented {t}?|What do you think about {t}?|Write code for {t}.|How do I learn {t}?|
Translate a text about {t}.|Give me a recipe for {t}.|Why is {t} important?|
What is the history of {t}?|Summarise {t} for me.|Can you help me with {t}?|
What is {t}?|How does {t} work?|Who is the best at {t}?|Draw {t}.|Sing about {t}.|
I need advice on {t}.|Is {t} good?""".replace("\n", "").split("|")

TOPICS = """love|the stock market|quantum physics|football|the French revolution|a web server|
chess|politics|democracy|the internet|philosophy|a lemon pie|lasagne|my homework|taxes|
the roman empire|black holes|evolution|jazz|machine learning|blockchain|cars|the weather|
sorting a list|a good marriage|tennis|poker|yoga|the second world war|economics|poetry|
the meaning of life|a trip to the mountains|dinosaurs|medicine|cancer|a new job|Python|Rust|
the piano|wine|coffee|architecture|Shakespeare|the moon landing|electricity|gravity|DNA|
painting|robots|fashion|movies|video games""".replace("\n", "").split("|")

# Countries and things that are real but that the model must admit not to know.
UNKNOWN_COUNTRIES = """Mongolia Bolivia Ghana Nepal Laos Fiji Malta Oman Qatar Yemen Angola
Latvia Serbia Uganda Zambia Panama Jordan Nigeria Morocco Colombia""".split()

_ONSETS = "b br c ch d f fl g gr h j k l m n p pr qu r s sh st t th tr v w y z".split()
_VOWELS = "a e i o u ai ea ee ie oa ou".split()
_CODAS = ["", "", "", "l", "n", "r", "s", "t", "m", "x", "ck", "nd"]


def invent(rng):
    """A made-up proper name. Copying names that never repeat is what teaches the
    model to copy any name, also one it has not met."""
    name = ""
    for _ in range(rng.randint(2, 3)):
        name += rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
    return name.capitalize()
