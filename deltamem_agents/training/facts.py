"""What can be told and asked: attributes with their phrasings, and lists of values.

Written for this project. Everything is English, short, and about the user, someone they know, or a thing
they own. Whatever is named HELD_OUT is kept for evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

STATEMENTS = (
    "My {a} is {v}.",
    "By the way, my {a} is {v}.",
    "Just so you know, my {a} is {v}.",
    "I should mention that my {a} is {v}.",
    "Please remember that my {a} is {v}.",
    "One more thing: my {a} is {v}.",
    "For the record, my {a} is {v}.",
    "You may want to note that my {a} is {v}.",
    "I wanted to tell you my {a} is {v}.",
    "Hi! My {a} is {v}.",
    "Oh, and my {a} is {v}, in case it matters.",
    "Before I forget, my {a} is {v}.",
    "The {a} is {v}.",
    "Our {a} is {v}.",
    "My {a}? It's {v}.",
    "As for my {a}, it is {v}.",
    "So, my {a} is {v}, and I thought you should know.",
    "It was a long day. Anyway, my {a} is {v}.",
    "My {a} is {v}, and it has been for years.",
    "Did I tell you that my {a} is {v}?",
    "Guess what: my {a} is {v}!",
    "Note that my {a} is {v}. What do you think?",
    "I have decided that my {a} is {v}.",
    "Let me tell you my {a}: {v}.",
)
HELD_OUT_STATEMENTS = (
    "Here is something about me: my {a} is {v}.",
    "It might help to know that my {a} is {v}.",
)
QUESTIONS = (
    "What is my {a}?",
    "What's my {a}?",
    "Do you remember my {a}?",
    "Can you tell me my {a}?",
    "Remind me, what is my {a}?",
    "I forgot my {a}. What is it?",
    "Tell me my {a}.",
    "What did I say my {a} was?",
    "Which {a} did I mention?",
    "Do you know what my {a} is?",
    "Hello again! What is my {a}?",
    "Quick question: what's my {a}?",
    "What was my {a} again?",
    "What is the {a}?",
    "What's our {a}?",
    "Any idea what my {a} is?",
    "Please tell me what my {a} is.",
    "I can't remember my {a}. Can you?",
    "Let's see if you remember my {a}.",
    "And my {a}?",
    "Thanks. By the way, what is my {a}?",
    "So what's my {a}?",
)
HELD_OUT_QUESTIONS = (
    "Could you remind me what my {a} is?",
    "I told you my {a} earlier. What was it?",
)
ANSWER_PREFIX = "Your {a} is"


@dataclass(frozen=True)
class Attribute:
    """One thing that can be told. `values` names a list of VALUES or "word" for any word.

    `told` and `asked` are its own phrasings beside the general ones. No statement begins with the value,
    which would give it other tokens than it has in a reply.
    """

    name: str
    values: str = "word"
    told: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()


def _plain(names: str, values: str) -> tuple[Attribute, ...]:
    return tuple(Attribute(name.strip(), values) for name in names.split(","))


def _named(owners: str, values: str) -> tuple[Attribute, ...]:
    """The names of people and animals, "dog" becoming "dog's name"."""
    return tuple(
        Attribute(
            f"{who}'s name",
            values,
            told=(
                f"My {who} is called {{v}}.",
                f"I have a {who} called {{v}}.",
                f"My {who} is named {{v}}.",
                f"We named our {who} {{v}}.",
                f"Have you met {{v}}? That's my {who}.",
                f"I was out with my {who} {{v}} today.",
                f"My {who} goes by {{v}}.",
                f"We have a new {who}, called {{v}}.",
            ),
            asked=(
                f"What is my {who} called?",
                f"What's the name of my {who}?",
                f"What did we name our {who}?",
                f"Who is my {who}?",
                f"Do you know my {who}?",
                f"How is my {who} called?",
            ),
        )
        for who in (part.strip() for part in owners.split(","))
    )


def _worker(people: str) -> tuple[Attribute, ...]:
    """What other people do for a living."""
    return tuple(
        Attribute(
            f"{who}'s job",
            "job",
            told=(f"My {who} is a {{v}}.", f"My {who} works as a {{v}}.", f"My {who} became a {{v}} last year."),
            asked=(f"What does my {who} do?", f"What is my {who}'s profession?", f"What does my {who} work as?"),
        )
        for who in (part.strip() for part in people.split(","))
    )


ATTRIBUTES: tuple[Attribute, ...] = (
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
        ),
        asked=("Where do I live?", "Which city do I live in?", "Where is my home?", "Where am I based?"),
    ),
    Attribute(
        "job",
        "job",
        told=("I work as a {v}.", "I'm a {v} by profession.", "For a living, I am a {v}.", "I earn my money as a {v}."),
        asked=("What do I do for a living?", "What is my profession?", "What do I work as?"),
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
    ),
    *_plain("favourite fruit,favorite food,favourite dish,favourite snack,favourite dessert,usual breakfast", "food"),
    *_plain(
        "hometown,holiday destination,favourite city,birthplace,next travel destination,parents' town,office location",
        "place",
    ),
    *_named("best friend, boss, teacher, neighbour, doctor, wife, husband", "person"),
    *_named("mother, father, daughter, son, roommate, coach", "person"),
    *_plain("favourite sport,favourite pastime,evening class", "hobby"),
    *_plain("favourite animal,spirit animal,favourite bird", "animal"),
    *_plain("car colour,bike colour,front door colour,lucky colour", "colour"),
    *_named("horse, parrot, hamster, boat, car, puppy, goldfish", "pet"),
    *_worker("sister, brother, neighbour, husband, mother"),
    *_plain("dream job,first job", "job"),
    Attribute(
        "car",
        told=("I drive a {v}.", "I bought a {v} last week.", "We just got a new {v} as our car."),
        asked=("What do I drive?", "Which car do I drive?", "What car did I buy?"),
    ),
    Attribute(
        "employer",
        told=("I work at {v}.", "I work for {v}.", "I got a job at {v}.", "I have been with {v} for ten years."),
        asked=("Where do I work?", "Who do I work for?", "Which company do I work for?"),
    ),
    Attribute(
        "travel plan",
        "place",
        told=("I'm going to {v} next month.", "We are planning a trip to {v}.", "We booked a flight to {v}."),
        asked=("Where am I going?", "Where are we going on our trip?", "Where did we book a flight to?"),
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
    ),
    *_plain(
        "lucky charm,password,code word,secret word,safe word,nickname,username,team name,project name,"
        "favourite word,favourite book,favourite song,favourite film,favourite game,favourite shop,company name,street,"
        "school,gym,band,favourite plant,favourite tool,favourite drink,birthday present,wifi name,laptop name,"
        "blog's name,cafe,bookshop,"
        "keyword,motto,call sign,team mascot,newsletter title,garden theme,favourite topic,mailing list,server name,"
        "meeting room,favourite brand,lucky stone,club,dance partner's nickname,start-up's name,thesis topic",
        "word",
    ),
)
HELD_OUT_ATTRIBUTES: tuple[Attribute, ...] = (
    *_plain("favourite flower,lucky word,favourite spice,hideout,door code word,quiz team", "word"),
    *_plain("aunt's name,landlord's name,dentist's name", "person"),
    *_plain("grandparents' city,summer house location", "place"),
    *_plain("rabbit's name,tortoise's name", "pet"),
    *_plain("favourite vegetable,favourite soup", "food"),
    *_plain("uncle's job", "job"),
)

SAME_SUBJECT: tuple[frozenset[str], ...] = (
    frozenset({"name", "nickname", "username", "call sign"}),
    frozenset({"name", "job"}),
    frozenset({"job", "first job", "dream job"}),
    frozenset(
        {"city", "hometown", "birthplace", "favourite city", "parents' town", "office location", "place of birth"}
    ),
    frozenset({"holiday destination", "next travel destination", "travel plan"}),
    frozenset({"place of birth", "birthday month"}),
    frozenset({"favourite colour", "favorite color", "lucky colour"}),
    frozenset(
        {
            "favourite food",
            "favorite food",
            "favourite dish",
            "favourite snack",
            "favourite dessert",
            "favourite fruit",
        }
    ),
    frozenset({"hobby", "favourite sport", "favourite pastime", "evening class"}),
    frozenset({"instrument", "favourite sport", "favourite game"}),
    frozenset({"favourite animal", "favourite bird", "spirit animal"}),
    *(frozenset({f"{who}'s name", f"{who}'s job"}) for who in ("sister", "brother", "neighbour", "husband", "mother")),
    frozenset({"job", "employer", "company name"}),
    frozenset({"car", "car's name", "car colour"}),
    frozenset({"dog's name", "puppy's name"}),
    frozenset({"password", "code word", "secret word", "safe word", "keyword"}),
    frozenset({"company name", "start-up's name"}),
)
"""Attributes that one question may be asking for: "Where do I live?" may mean the city or the hometown."""


def same_subject(one: Attribute, other: Attribute) -> bool:
    """Whether a question about one may be taken for a question about the other."""
    return one.name == other.name or any(one.name in names and other.name in names for names in SAME_SUBJECT)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", " ").split(",") if part.strip())


VALUES: dict[str, tuple[str, ...]] = {
    "person": _words(
        """Anna, Marcus, Elena, Oliver, Priya, Kenji, Fatima, Lars, Sofia, Diego, Ingrid, Tomas, Amara, Felix, Nadia,
        Hugo, Chloe, Samuel, Leila, Victor, Greta, Omar, Julia, Pavel, Maya, Simon, Rosa, Ethan, Clara, Bruno,
        Alice, Daniel, Helena, Marco, Nina, Oscar, Paula, Quentin, Rachel, Stefan, Teresa, Ulrich, Vera, Walter,
        Xenia, Yusuf, Zoe, Adrian, Bianca, Cedric, Diana, Emil, Flora, George, Hannah, Isaac, Jasmine, Kevin, Laura,
        Martin, Naomi, Otto, Peter, Ruth, Sarah, Theo, Ursula, Vincent, Wendy, Yara, Arthur, Beatrice, Carlos,
        Dorothy, Edgar, Frida, Gustav, Irene, Jonas, Karin, Leonard, Miriam, Nolan, Olga, Patrick, Ramona, Sven,
        Tabitha, Umberto, Viola, Wilma, Boris, Carmen, Dennis"""
    ),
    "place": _words(
        """Lisbon, Oslo, Kyoto, Porto, Berlin, Nairobi, Lima, Dublin, Prague, Seoul, Cairo, Boston, Vienna, Madrid,
        Toronto, Mumbai, Helsinki, Athens, Geneva, Denver, Warsaw, Milan, Naples, Zurich, Hamburg, Krakow, Lyon,
        Bergen, Utrecht, Seattle, Austin, Chicago, Montreal, Sydney, Perth, Hanoi, Jakarta, Manila, Osaka, Taipei,
        Delhi, Accra, Lagos, Tunis, Rabat, Bogota, Quito, Havana, Santiago, Munich, Leipzig, Dresden, Basel,
        Salzburg, Bruges, Ghent, Leeds, Bristol, Glasgow, Cardiff, Belfast, Galway, Cork, Riga, Vilnius, Tallinn,
        Budapest, Sofia, Zagreb, Split, Ankara, Izmir, Haifa, Amman, Doha, Dubai, Muscat, Karachi, Lahore, Colombo,
        Bangkok, Phuket, Auckland, Wellington"""
    ),
    "job": _words(
        """nurse, teacher, baker, plumber, lawyer, chemist, farmer, painter, carpenter, dentist, engineer, pilot,
        librarian, translator, gardener, photographer, accountant, tailor, welder, journalist, architect, barber,
        butcher, cashier, chef, clerk, composer, coach, dancer, designer, driver, editor, electrician, firefighter,
        fisherman, florist, guard, hairdresser, judge, mechanic, midwife, miner, musician, optician, pharmacist,
        physicist, potter, programmer, psychologist, receptionist, sailor, scientist, sculptor, secretary, singer,
        surgeon, waiter, writer, zookeeper"""
    ),
    "pet": _words(
        """Biscuit, Luna, Rex, Milo, Pepper, Shadow, Coco, Bella, Max, Daisy, Ginger, Oreo, Simba, Nala, Ziggy, Peanut,
        Whiskers, Tiger, Smokey, Buddy, Rocky, Molly, Cookie, Pumpkin, Mango, Olive, Pickle, Waffle, Noodle, Button,
        Mocha, Muffin, Hazel, Poppy, Scout, Bandit, Comet, Rusty, Storm, Willow, Ash, Basil, Bean, Blue, Cinnamon,
        Clover, Dusty, Echo, Fern, Ghost, Honey, Iris, Jasper, Jet, Lucky, Maple, Nugget, Onyx, Pebble, Pirate,
        Raven, River, Sage, Sunny"""
    ),
    "food": _words(
        """sushi, pizza, peanuts, strawberries, cheese, shrimp, mango, lasagna, noodles, pancakes, walnuts, eggs, soy,
        honey, mushrooms, tomatoes, avocado, curry, dumplings, risotto, spinach, salmon, tofu, garlic, chocolate,
        bananas, apples, cherries, peaches, grapes, lentils, beans, rice, bread, butter, yogurt, oatmeal, cereal,
        bacon, sausage, lobster, oysters, almonds, cashews, celery, carrots, potatoes, pumpkin, ginger, olives,
        pears, plums, melon, pineapple, coconut, waffles, muffins, soup, salad, tacos, burritos, ramen, kebab,
        couscous, hummus, polenta, gnocchi"""
    ),
    "hobby": _words(
        """chess, painting, climbing, knitting, cycling, photography, pottery, fishing, gardening, hiking, yoga,
        surfing, baking, archery, rowing, fencing, skiing, sailing, dancing, origami, astronomy, birdwatching,
        boxing, running, swimming, tennis, football, volleyball, hockey, golf, judo, karate, woodworking,
        calligraphy, juggling, singing, writing, reading, cooking, camping, kayaking, skating, sewing, sculpting,
        drawing, poker, bowling, darts, rugby"""
    ),
    "colour": _words(
        """blue, green, red, purple, orange, yellow, teal, pink, brown, grey, black, white, gold, silver, violet,
        turquoise, crimson, beige, maroon, navy, olive, indigo, scarlet, lavender, magenta, cyan, ivory, amber,
        emerald, copper, coral, mint, mustard, peach, plum, rose, ruby, rust, salmon, sand, tan, charcoal, bronze,
        burgundy, cream, khaki, lime"""
    ),
    "animal": _words(
        """otter, heron, wolf, fox, owl, badger, dolphin, tiger, panda, falcon, turtle, rabbit, eagle, penguin, beaver,
        raven, lynx, whale, hedgehog, deer, bear, lion, horse, donkey, camel, giraffe, zebra, leopard, monkey,
        gorilla, squirrel, hamster, mouse, sparrow, robin, swan, goose, duck, pelican, stork, crane, parrot, crow,
        seal, shark, octopus, crab"""
    ),
    "language": _words(
        """Portuguese, Spanish, Italian, French, German, Dutch, Danish, Swedish, Finnish, Polish, Czech, Greek, Turkish,
        Arabic, Hebrew, Hindi, Korean, Japanese, Chinese, Thai, Russian, Latin, Welsh, Irish, Hungarian, Romanian"""
    ),
    "month": _words(
        """January, February, March, April, May, June, July, August, September, October, November,
        December, spring, summer, autumn, winter, carnival, monsoon, Easter, Christmas"""
    ),
    "day": _words("""Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"""),
    "instrument": _words(
        """piano, violin, cello, guitar, flute, drums, trumpet, harp, banjo, clarinet, saxophone, accordion, viola,
        trombone, oboe, ukulele, mandolin, organ, bass, harmonica, tuba, bassoon, lute, piccolo, xylophone,
        bagpipes, sitar, zither"""
    ),
}

ACKNOWLEDGEMENTS = (
    "Got it.",
    "Thanks for telling me.",
    "Noted, thank you.",
    "Okay, I will keep that in mind.",
    "Good to know.",
    "Thank you for sharing that.",
    "I understand.",
    "Sure, I'll remember that.",
    "Alright!",
    "That's nice to hear.",
    "Great, thanks.",
    "Understood. How can I help you today?",
    "Thanks! Is there anything you would like to know?",
    "I see. What can I do for you?",
)
ECHOES = ("Got it, {v}.", "{v}, noted.", "Okay: your {a} is {v}.", "Thanks, I noted {v}.", "I see, {v}. How nice!")
