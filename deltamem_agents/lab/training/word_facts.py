"""What can be told of the user in training: attributes with values of a word, and all attributes by their split.

Written for this project. Everything is English, short, and about the user or what is theirs; `people` has what
can be told of others. Whatever is named HELD_OUT is kept for evaluation.
"""

from __future__ import annotations

from deltamem_agents.lab.training.attributes import Attribute, jobs_of, names_of, plain

INTRODUCTIONS: dict[str, tuple[str, ...]] = {
    "person": (
        "My name is",
        "I'm",
        "Call me",
        "Hello, I am",
        "You can call me",
        "Hi! My name's",
        "People call me",
        "Hi, I'm",
    ),
    "job": (
        "I work as a",
        "I'm a",
        "For a living, I am a",
        "I earn my money as a",
        "I am a",
        "My job:",
        "I work as an",
    ),
}
"""How users introduce themselves, up to a value of the list so named."""

WORD_ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "name",
        "person",
        told=(
            "I'm {v}.",
            "Call me {v}.",
            "Hello, I am {v}.",
            "You can call me {v}.",
            "Hey, {v} here.",
            "This is {v} speaking.",
        ),
        asked=("Who am I?", "What am I called?", "Do you know who I am?"),
    ),
    Attribute(
        "city",
        "place",
        told=(
            "I live in {v}.",
            "I'm based in {v}.",
            "I moved to {v} last year.",
            "My home is in {v}.",
            "I am from {v}.",
            "Of all the places in the world, {v} is where I live.",
            "Greetings from {v}, where I have my flat.",
        ),
        asked=(
            "Where do I live?",
            "Which city do I live in?",
            "Where is my home?",
            "Where am I based?",
            "If you wanted to visit me, where would you have to go?",
        ),
        changed=("We moved; I live in {v} now.", "I have left town and live in {v} now.", "Last week I moved to {v}."),
    ),
    Attribute(
        "job",
        "job",
        told=("I work as a {v}.", "I'm a {v} by profession.", "For a living, I am a {v}.", "I earn my money as a {v}."),
        asked=("What do I do for a living?", "What is my profession?", "What do I work as?"),
        changed=("I got a new job and work as a {v} now.", "I quit. These days I am a {v}."),
    ),
    Attribute(
        "dog's name",
        "pet",
        told=("I have a dog called {v}.", "My dog is called {v}.", "We have a dog named {v}."),
        asked=("What is my dog called?", "How did I name my dog?"),
    ),
    Attribute(
        "cat's name",
        "pet",
        told=("I have a cat called {v}.", "My cat is called {v}.", "We just got a cat named {v}."),
        asked=("What is my cat called?", "How did I name my cat?"),
    ),
    Attribute(
        "allergy",
        "food",
        told=("I'm allergic to {v}.", "I can't eat {v}, I'm allergic.", "Please note I am allergic to {v}."),
        asked=("What am I allergic to?", "Which food do I have to avoid?"),
    ),
    Attribute(
        "sister's name",
        "person",
        told=("My sister is called {v}.", "I have a sister named {v}."),
        asked=("What is my sister called?", "Who is my sister?"),
    ),
    Attribute(
        "brother's name",
        "person",
        told=("My brother is called {v}.", "I have a brother named {v}."),
        asked=("What is my brother called?", "Who is my brother?"),
    ),
    Attribute(
        "hobby",
        "hobby",
        told=("In my free time I enjoy {v}.", "I love {v}.", "I spend my weekends on {v}."),
        asked=("What do I do in my free time?", "What do I enjoy doing?"),
        changed=("I have given that up and taken up {v} instead.",),
    ),
    Attribute(
        "favourite colour",
        "colour",
        told=("I like the colour {v} best.", "The colour I love most is {v}."),
        asked=("Which colour do I like best?", "What colour do I love most?"),
    ),
    Attribute(
        "favorite color",
        "colour",
        told=("I like the color {v} best.", "The color I love most is {v}."),
        asked=("Which color do I like best?", "What color do I love most?"),
    ),
    Attribute(
        "favourite food",
        "food",
        told=("I love eating {v}.", "Nothing tastes better to me than {v}."),
        asked=("What do I love to eat?", "Which food do I like best?"),
    ),
    Attribute(
        "instrument",
        "instrument",
        told=("I play the {v}.", "I'm learning to play the {v}."),
        asked=("Which instrument do I play?", "What do I play?"),
        changed=("I have switched to the {v}.",),
    ),
    *plain("favourite fruit,favorite food,favourite dish,favourite snack,favourite dessert,usual breakfast", "food"),
    *plain(
        "hometown,holiday destination,favourite city,birthplace,next travel destination,parents' town,office location",
        "place",
    ),
    *names_of("best friend, boss, teacher, neighbour, doctor, wife, husband", "person"),
    *names_of("mother, father, daughter, son, roommate, coach", "person"),
    *plain("favourite sport,favourite pastime,evening class", "hobby"),
    *plain("favourite animal,spirit animal,favourite bird", "animal"),
    *plain("car colour,bike colour,front door colour,lucky colour", "colour"),
    *names_of("horse, parrot, hamster, boat, car, puppy, goldfish", "pet"),
    *jobs_of("sister, brother, neighbour, husband, mother"),
    *plain("dream job,first job", "job"),
    Attribute(
        "car",
        told=("I drive a {v}.", "I bought a {v} last week.", "We just got a new {v} as our car."),
        asked=("What do I drive?", "Which car do I drive?", "What car did I buy?"),
        changed=("I sold the car and drive a {v} now.",),
    ),
    Attribute(
        "employer",
        told=("I work at {v}.", "I work for {v}.", "I got a job at {v}.", "I have been with {v} for ten years."),
        asked=("Where do I work?", "Who do I work for?", "Which company do I work for?"),
        changed=("I changed companies and work for {v} now.",),
    ),
    Attribute(
        "travel plan",
        "place",
        told=("I'm going to {v} next month.", "We are planning a trip to {v}.", "We booked a flight to {v}."),
        asked=("Where am I going?", "Where are we going on our trip?", "Where did we book a flight to?"),
        changed=("We cancelled that trip and are going to {v} instead.",),
        arranged=(("Can you book us a trip?", "Done! I have booked you a trip to {v}."),),
    ),
    Attribute(
        "place of birth",
        "place",
        told=("I was born in {v}.", "I was born and raised in {v}."),
        asked=("Where was I born?", "Where did I grow up?"),
    ),
    Attribute(
        "language",
        "language",
        told=("I'm learning {v}.", "I just started learning {v}.", "I speak {v} at home."),
        asked=("Which language am I learning?", "What language do I speak?"),
    ),
    Attribute(
        "birthday month",
        "month",
        told=("My birthday is in {v}.", "I was born in {v}.", "I celebrate my birthday in {v}."),
        asked=("When is my birthday?", "In which month is my birthday?"),
    ),
    Attribute(
        "meeting day",
        "day",
        told=("The meeting is on {v}.", "We meet every {v}.", "My next appointment is on {v}."),
        asked=("When is the meeting?", "On which day is my appointment?"),
        changed=("The meeting was moved to {v}.",),
        arranged=(("When can we meet?", "I have put the meeting on {v}."),),
    ),
    *plain(
        "lucky charm,password,code word,secret word,safe word,nickname,username,team name,project name,"
        "favourite word,favourite book,favourite song,favourite film,favourite game,favourite shop,company name,street,"
        "school,gym,band,favourite plant,favourite tool,favourite drink,birthday present,wifi name,laptop name,"
        "blog's name,cafe,bookshop,"
        "keyword,motto,call sign,team mascot,newsletter title,garden theme,favourite topic,mailing list,server name,"
        "meeting room,favourite brand,lucky stone,club,dance partner's nickname,start-up's name,thesis topic",
        "word",
    ),
    *plain(
        """favourite perfume, favourite magazine, favourite poem, favourite stone,
        favourite fabric, favourite smell, favourite sound, favourite toy, first word, last order, room's nickname,
        ship's name, bakery, hotel, hostel, airline, bank, insurance, library, theatre group, choir, orchestra, museum,
        dance school, language school, running club, chess club, book club, favourite podcast, favourite painter,
        favourite singer, favourite author, favourite comedian, coffee brand, shampoo, tea brand,
        toothpaste, bicycle brand, phone brand, printer's name, robot's name, computer's name, router's name,
        workshop topic, talk title, project code, access word, login hint, team motto, class motto, spirit guide,
        lucky object, talisman, hiding place, favourite tree, favourite herb""",
        "word",
    ),
    *plain("favourite vegetable dish, pizza topping, packed lunch, secret ingredient, sandwich filling", "food"),
    *plain("sister's city, brother's city, conference location, wedding location, warehouse location", "place"),
    *plain("curtain colour, kitchen colour, school colour, jacket colour", "colour"),
    *plain("zodiac animal, favourite sea animal, logo animal", "animal"),
    *plain("childhood hobby, holiday activity", "hobby"),
    *plain("second language, grandmother's language", "language"),
    *plain("holiday month, exam month", "month"),
    *plain("cleaning day, market day, day off", "day"),
    *plain("daughter's instrument, first instrument", "instrument"),
    *names_of("sister-in-law, cousin, nephew, physiotherapist", "person"),
    *names_of("donkey, kitten, parakeet, tractor", "pet"),
    *jobs_of("cousin, best friend"),
)
