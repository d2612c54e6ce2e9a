"""Lists of values that can be told, by what they are. Written for this project.

`WORD_VALUES` are mostly single words; `COMPOSED_VALUES` are numbers, dates, times and several words, put
together from parts, thousands of each kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import product
from typing import Literal, TypeAlias

from deltamem_agents.lab.training.splits import Split, split_values

ValueKind: TypeAlias = Literal["word", "number", "date", "time", "phrase"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(",") if part.strip())


def _joined(*parts: Iterable[str]) -> tuple[str, ...]:
    """Every combination of the parts, a space between them."""
    return tuple(" ".join(combination) for combination in product(*parts))


_MONTHS = _words("January, February, March, April, May, June, July, August, September, October, November, December")
_DAYS = _words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")

WORD_VALUES: Mapping[str, tuple[str, ...]] = {
    "person": _words(
        """Anna, Marcus, Elena, Oliver, Priya, Kenji, Fatima, Lars, Sofia, Diego, Ingrid, Tomas, Amara, Felix, Nadia,
        Hugo, Chloe, Samuel, Leila, Victor, Greta, Omar, Julia, Pavel, Maya, Simon, Rosa, Ethan, Clara, Bruno,
        Alice, Daniel, Helena, Marco, Nina, Oscar, Paula, Quentin, Rachel, Stefan, Teresa, Ulrich, Vera, Walter,
        Xenia, Yusuf, Zoe, Adrian, Bianca, Cedric, Diana, Emil, Flora, George, Hannah, Isaac, Jasmine, Kevin, Laura,
        Martin, Naomi, Otto, Peter, Ruth, Sarah, Theo, Ursula, Vincent, Wendy, Yara, Arthur, Beatrice, Carlos,
        Dorothy, Edgar, Frida, Gustav, Irene, Jonas, Karin, Leonard, Miriam, Nolan, Olga, Patrick, Ramona, Sven,
        Tabitha, Umberto, Viola, Wilma, Boris, Carmen, Dennis, Aaron, Abigail, Agnes, Aisha, Alan, Albert, Alma,
        Amelia, Amir, Andrea, Andrew, Angela, Anton, April, Astrid, Audrey, Barbara, Benjamin, Bernard, Bridget,
        Brian, Camille, Caroline, Catherine, Cecilia, Charles, Christine, Claude, Colin, Cora, Cynthia, Damian,
        David, Deborah, Derek, Dmitri, Dominic, Donna, Douglas, Duncan, Edith, Edward, Eileen, Elias, Elliot, Elsa,
        Emma, Erik, Esther, Eva, Evelyn, Fabian, Farid, Fiona, Florence, Francis, Frank, Gabriel, Gareth, Gemma,
        Gerald, Gloria, Gordon, Grace, Graham, Gwen, Hamid, Harriet, Harry, Hassan, Hector, Henry, Hilda, Howard,
        Ian, Ibrahim, Ida, Igor, Ines, Ivan, Jack, Jacob, James, Janet, Jean, Jeremy, Jerome, Jessica, Joan, Joel,
        Johanna, Jorge, Joseph, Judith, Justin, Karim, Kate, Keith, Kenneth, Klaus, Kurt, Lena, Leo, Lewis, Liam,
        Lila, Linda, Louis, Lucas, Lucy, Luis, Lydia, Mabel, Madeleine, Magnus, Malik, Manuel, Margaret, Marie,
        Mario, Martha, Matthew, Maurice, Megan, Michael, Milan, Mira, Mohammed, Monica, Morgan, Nancy, Natalie,
        Nathan, Neil, Nicholas, Nicole, Niels, Nora, Norman, Owen, Pamela, Pascal, Paul, Pedro, Penelope, Philip,
        Pierre, Rafael, Ralph, Rebecca, Regina, Renata, Rhoda, Richard, Robert, Roger, Roland, Ronald, Rosemary,
        Rupert, Russell, Sabine, Salma, Sandra, Sanjay, Sebastian, Serena, Sergio, Sheila, Sidney, Silvia, Sonia,
        Stella, Stephen, Susan, Svetlana, Sylvia, Tamara, Tanya, Tariq, Terence, Thomas, Timothy, Tobias, Tom,
        Trevor, Valerie, Vanessa, Vernon, Victoria, Vikram, Violet, Vivian, Wanda, Warren, William, Winston, Yasmin,
        Yolanda, Yvonne, Zara, Zachary"""
    ),
    "place": _words(
        """Lisbon, Oslo, Kyoto, Porto, Berlin, Nairobi, Lima, Dublin, Prague, Seoul, Cairo, Boston, Vienna, Madrid,
        Toronto, Mumbai, Helsinki, Athens, Geneva, Denver, Warsaw, Milan, Naples, Zurich, Hamburg, Krakow, Lyon,
        Bergen, Utrecht, Seattle, Austin, Chicago, Montreal, Sydney, Perth, Hanoi, Jakarta, Manila, Osaka, Taipei,
        Delhi, Accra, Lagos, Tunis, Rabat, Bogota, Quito, Havana, Santiago, Munich, Leipzig, Dresden, Basel,
        Salzburg, Bruges, Ghent, Leeds, Bristol, Glasgow, Cardiff, Belfast, Galway, Cork, Riga, Vilnius, Tallinn,
        Budapest, Sofia, Zagreb, Split, Ankara, Izmir, Haifa, Amman, Doha, Dubai, Muscat, Karachi, Lahore, Colombo,
        Bangkok, Phuket, Auckland, Wellington, Aberdeen, Adelaide, Albany, Aleppo, Algiers, Amsterdam, Antwerp,
        Atlanta, Baghdad, Baku, Baltimore, Barcelona, Beijing, Beirut, Belgrade, Bern, Birmingham, Bologna, Bonn,
        Bordeaux, Brasilia, Bratislava, Bremen, Brisbane, Brno, Brussels, Bucharest, Buffalo, Calais, Calgary,
        Cambridge, Canberra, Caracas, Casablanca, Catania, Cologne, Copenhagen, Cordoba, Dakar, Dallas, Damascus,
        Darwin, Detroit, Dhaka, Dortmund, Durban, Edinburgh, Essen, Exeter, Florence, Frankfurt, Freiburg, Gdansk,
        Genoa, Granada, Graz, Grenoble, Hanover, Harare, Hobart, Honolulu, Houston, Innsbruck, Istanbul, Jerusalem,
        Johannesburg, Kabul, Kampala, Kathmandu, Khartoum, Kiev, Kingston, Kolkata, Lausanne, Lille, Linz,
        Liverpool, Ljubljana, London, Lucerne, Lusaka, Malaga, Malmo, Manchester, Marseille, Melbourne, Memphis,
        Miami, Minsk, Mombasa, Montevideo, Moscow, Nantes, Nashville, Newcastle, Nice, Norwich, Nottingham, Orlando,
        Ottawa, Oxford, Palermo, Panama, Paris, Philadelphia, Phoenix, Pisa, Plymouth, Portland, Poznan, Pretoria,
        Quebec, Reykjavik, Rome, Rotterdam, Salamanca, Sarajevo, Seville, Shanghai, Sheffield, Singapore, Skopje,
        Stockholm, Strasbourg, Stuttgart, Tampa, Tangier, Tbilisi, Tehran, Tirana, Tokyo, Toulouse, Trieste,
        Tripoli, Trondheim, Turin, Turku, Uppsala, Valencia, Vancouver, Venice, Verona, Victoria, Winnipeg, Wroclaw,
        Yerevan, York"""
    ),
    "job": _words(
        """nurse, teacher, baker, plumber, lawyer, chemist, farmer, painter, carpenter, dentist, engineer, pilot,
        librarian, translator, gardener, photographer, accountant, tailor, welder, journalist, architect, barber,
        butcher, cashier, chef, clerk, composer, coach, dancer, designer, driver, editor, electrician, firefighter,
        fisherman, florist, guard, hairdresser, judge, mechanic, midwife, miner, musician, optician, pharmacist,
        physicist, potter, programmer, psychologist, receptionist, sailor, scientist, sculptor, secretary, singer,
        surgeon, waiter, writer, zookeeper, actor, actuary, analyst, anthropologist, archaeologist, archivist,
        artist, astronomer, auctioneer, auditor, banker, bartender, beekeeper, biologist, blacksmith, bookbinder,
        bookkeeper, bookseller, botanist, brewer, bricklayer, broker, builder, caretaker, cartographer, cleaner,
        cobbler, comedian, conductor, cook, counsellor, courier, curator, decorator, detective, diplomat, diver,
        doctor, dressmaker, economist, engraver, estimator, farrier, fireman, forester, geologist, glazier,
        goldsmith, grocer, historian, illustrator, inspector, interpreter, janitor, jeweller, jockey, lecturer,
        lifeguard, locksmith, logger, magician, mason, mathematician, meteorologist, milliner, model, novelist,
        nutritionist, optometrist, paramedic, pediatrician, philosopher, physician, playwright, poet, policeman,
        porter, postman, printer, producer, professor, publisher, radiologist, ranger, reporter, roofer, saddler,
        salesman, shepherd, shopkeeper, soldier, solicitor, statistician, steward, surveyor, taxidermist,
        technician, therapist, trader, trainer, tutor, umpire, undertaker, upholsterer, vet, violinist, weaver,
        winemaker, zoologist"""
    ),
    "pet": _words(
        """Biscuit, Luna, Rex, Milo, Pepper, Shadow, Coco, Bella, Max, Daisy, Ginger, Oreo, Simba, Nala, Ziggy, Peanut,
        Whiskers, Tiger, Smokey, Buddy, Rocky, Molly, Cookie, Pumpkin, Mango, Olive, Pickle, Waffle, Noodle, Button,
        Mocha, Muffin, Hazel, Poppy, Scout, Bandit, Comet, Rusty, Storm, Willow, Ash, Basil, Bean, Blue, Cinnamon,
        Clover, Dusty, Echo, Fern, Ghost, Honey, Iris, Jasper, Jet, Lucky, Maple, Nugget, Onyx, Pebble, Pirate,
        Raven, River, Sage, Sunny, Acorn, Angel, Apollo, Archie, Bailey, Banjo, Barney, Beau, Benji, Birdie,
        Biscotti, Blaze, Boots, Bramble, Brandy, Bruno, Bubbles, Buster, Cactus, Candy, Caramel, Casper, Charlie,
        Chester, Chip, Cleo, Copper, Cosmo, Crumpet, Cupcake, Dexter, Diesel, Domino, Duke, Ember, Fidget, Figaro,
        Flash, Freckles, Fudge, Gizmo, Goldie, Gus, Harley, Heidi, Hobbes, Holly, Hunter, Indie, Ivy, Jelly, Joker,
        Juniper, Kiki, Kiwi, Kona, Lady, Lemon, Lola, Marble, Marley, Maverick, Merlin, Midnight, Misty, Mittens,
        Moose, Nacho, Nemo, Nova, Nutmeg, Oscar, Otis, Patches, Penny, Pippin, Pixel, Popcorn, Prince, Puffin,
        Puzzle, Quincy, Radar, Ranger, Raisin, Rascal, Roscoe, Ruby, Saffron, Salty, Sasha, Schnapps, Skipper,
        Snickers, Snowball, Socks, Sparky, Speckles, Spike, Sprout, Squeak, Stella, Sushi, Tango, Teddy, Thunder,
        Toffee, Truffle, Tucker, Turbo, Twix, Velvet, Waldo, Winston, Yogi, Zelda, Zephyr, Zorro"""
    ),
    "food": _words(
        """sushi, pizza, peanuts, strawberries, cheese, shrimp, mango, lasagna, noodles, pancakes, walnuts, eggs, soy,
        honey, mushrooms, tomatoes, avocado, curry, dumplings, risotto, spinach, salmon, tofu, garlic, chocolate,
        bananas, apples, cherries, peaches, grapes, lentils, beans, rice, bread, butter, yogurt, oatmeal, cereal,
        bacon, sausage, lobster, oysters, almonds, cashews, celery, carrots, potatoes, pumpkin, ginger, olives,
        pears, plums, melon, pineapple, coconut, waffles, muffins, soup, salad, tacos, burritos, ramen, kebab,
        couscous, hummus, polenta, gnocchi, artichokes, asparagus, anchovies, apricots, aubergines, bagels, barley,
        basil, beef, beetroot, biscuits, blackberries, blueberries, broccoli, brownies, buckwheat, burgers, cabbage,
        cake, caramel, cauliflower, chicken, chickpeas, chicory, chili, cinnamon, clams, cod, coriander, corn,
        cornbread, crab, cranberries, croissants, cucumbers, cupcakes, currants, dates, doughnuts, duck, endive,
        fajitas, falafel, fennel, figs, fondue, fries, fudge, goulash, grapefruit, gravy, guacamole, haddock, ham,
        hazelnuts, herring, horseradish, jam, jelly, kale, kimchi, kiwis, lamb, leeks, lemons, lettuce, limes,
        liquorice, lychees, mackerel, marmalade, marzipan, meatballs, milk, millet, muesli, mussels, mustard,
        nectarines, nougat, oranges, oregano, paella, papaya, parsley, parsnips, pasta, pastrami, pecans, peppers,
        pesto, pickles, pies, pistachios, popcorn, porridge, pretzels, prunes, quiche, quinoa, radishes, raisins,
        raspberries, ravioli, rhubarb, rye, sardines, sauerkraut, scallops, scones, sesame, sorbet, squid, steak,
        stew, sweetcorn, tapioca, toast, trout, truffles, tuna, turkey, turnips, vanilla, venison, watercress,
        watermelon, yams"""
    ),
    "hobby": _words(
        """chess, painting, climbing, knitting, cycling, photography, pottery, fishing, gardening, hiking, yoga,
        surfing, baking, archery, rowing, fencing, skiing, sailing, dancing, origami, astronomy, birdwatching,
        boxing, running, swimming, tennis, football, volleyball, hockey, golf, judo, karate, woodworking,
        calligraphy, juggling, singing, writing, reading, cooking, camping, kayaking, skating, sewing, sculpting,
        drawing, poker, bowling, darts, rugby, acting, aerobics, animation, badminton, baseball, basketball,
        beekeeping, billiards, blogging, bodybuilding, bookbinding, brewing, bridge, canoeing, carving, caving,
        collecting, composing, cricket, crochet, croquet, crosswords, curling, diving, dominoes, embroidery,
        etching, falconry, filmmaking, foraging, genealogy, geocaching, gliding, gymnastics, handball, horticulture,
        improv, jewellery, jogging, journaling, kickboxing, lacrosse, macrame, magic, marathons, meditation,
        metalwork, mosaics, mountaineering, orienteering, parachuting, paragliding, parkour, patchwork, petanque,
        philately, pilates, ping-pong, podcasting, polo, puppetry, puzzles, quilting, rafting, robotics,
        sailboarding, scrapbooking, scuba, sketching, skydiving, sledding, snooker, snorkelling, snowboarding,
        softball, spinning, sprinting, squash, storytelling, sudoku, tailoring, tango, tapestry, theatre,
        trampolining, travelling, trekking, triathlon, volunteering, walking, waterpolo, weaving, weightlifting,
        whittling, windsurfing, wrestling"""
    ),
    "colour": _words(
        """blue, green, red, purple, orange, yellow, teal, pink, brown, grey, black, white, gold, silver, violet,
        turquoise, crimson, beige, maroon, navy, olive, indigo, scarlet, lavender, magenta, cyan, ivory, amber,
        emerald, copper, coral, mint, mustard, peach, plum, rose, ruby, rust, salmon, sand, tan, charcoal, bronze,
        burgundy, cream, khaki, lime, apricot, aquamarine, ash, auburn, azure, berry, brass, brick, buff, camel,
        caramel, carmine, cerulean, champagne, chartreuse, cherry, chestnut, chocolate, cinnamon, citrine, claret,
        cobalt, cocoa, coffee, cranberry, denim, ebony, ecru, eggshell, fawn, flax, fuchsia, ginger, graphite,
        hazel, heather, henna, honey, jade, jet, lapis, lemon, lilac, linen, mahogany, mango, mauve, melon, moss,
        mulberry, nutmeg, ochre, onyx, opal, orchid, oyster, pearl, periwinkle, pewter, pine, pistachio, platinum,
        poppy, pumpkin, quartz, raspberry, russet, saffron, sage, sapphire, sepia, sienna, slate, smoke, steel,
        straw, strawberry, tangerine, taupe, terracotta, thistle, titanium, tomato, topaz, ultramarine, umber,
        vanilla, vermilion, walnut, wheat, wine, wisteria, zinc"""
    ),
    "animal": _words(
        """otter, heron, wolf, fox, owl, badger, dolphin, tiger, panda, falcon, turtle, rabbit, eagle, penguin, beaver,
        raven, lynx, whale, hedgehog, deer, bear, lion, horse, donkey, camel, giraffe, zebra, leopard, monkey,
        gorilla, squirrel, hamster, mouse, sparrow, robin, swan, goose, duck, pelican, stork, crane, parrot, crow,
        seal, shark, octopus, crab, alligator, alpaca, anteater, antelope, armadillo, baboon, bat, beetle, bison,
        blackbird, boar, bobcat, budgie, buffalo, bull, bumblebee, butterfly, buzzard, canary, caribou, carp, cat,
        caterpillar, catfish, chameleon, cheetah, chicken, chimpanzee, cobra, cockatoo, cormorant, cougar, cow,
        coyote, cricket, crocodile, cuckoo, dingo, dog, dormouse, dove, dragonfly, eel, elephant, elk, emu, ferret,
        finch, firefly, flamingo, frog, gazelle, gecko, gerbil, gibbon, goat, goldfinch, goldfish, grasshopper,
        grouse, guppy, gull, hare, hawk, heifer, herring, hippo, hummingbird, hyena, ibex, iguana, impala, jackal,
        jackdaw, jaguar, jay, jellyfish, kangaroo, kingfisher, kite, kiwi, koala, ladybird, lamb, lark, lemur,
        lizard, llama, lobster, macaw, magpie, manatee, mandrill, marmot, meerkat, mole, mongoose, moose, mosquito,
        moth, mule, newt, nightingale, ocelot, orca, osprey, ostrich, oyster, panther, partridge, peacock, pheasant,
        pig, pigeon, pike, platypus, polecat, pony, porcupine, porpoise, puffin, puma, python, quail, raccoon, ram,
        rat, reindeer, rhino, roach, rooster, salamander, salmon, scorpion, seahorse, sheep, shrew, shrimp, skunk,
        sloth, snail, snake, spider, squid, starling, stingray, stoat, sturgeon, swallow, tapir, terrapin, thrush,
        toad, tortoise, toucan, trout, tuna, turkey, viper, vole, vulture, wagtail, wallaby, walrus, warthog, wasp,
        weasel, wombat, woodpecker, wren, yak"""
    ),
    "language": _words(
        """Portuguese, Spanish, Italian, French, German, Dutch, Danish, Swedish, Finnish, Polish, Czech, Greek,
        Turkish, Arabic, Hebrew, Hindi, Korean, Japanese, Chinese, Thai, Russian, Latin, Welsh, Irish, Hungarian,
        Romanian, Afrikaans, Albanian, Amharic, Armenian, Azerbaijani, Basque, Bavarian, Belarusian, Bengali,
        Bosnian, Breton, Bulgarian, Burmese, Cantonese, Catalan, Cebuano, Cherokee, Cornish, Corsican, Creole,
        Croatian, Dari, English, Esperanto, Estonian, Faroese, Fijian, Filipino, Flemish, Frisian, Galician,
        Georgian, Guarani, Gujarati, Hausa, Hawaiian, Icelandic, Igbo, Indonesian, Inuktitut, Javanese, Kannada,
        Kazakh, Khmer, Kurdish, Kyrgyz, Ladino, Lao, Latvian, Lithuanian, Luxembourgish, Macedonian, Malagasy,
        Malay, Malayalam, Maltese, Mandarin, Manx, Maori, Marathi, Mongolian, Nahuatl, Navajo, Nepali, Norwegian,
        Occitan, Oromo, Pashto, Persian, Punjabi, Quechua, Romansh, Samoan, Sanskrit, Sardinian, Scots, Serbian,
        Shona, Sicilian, Sindhi, Sinhala, Slovak, Slovenian, Somali, Sorbian, Swahili, Tagalog, Tahitian, Tamil,
        Tatar, Telugu, Tibetan, Tigrinya, Tongan, Turkmen, Ukrainian, Urdu, Uyghur, Uzbek, Vietnamese, Wolof, Xhosa,
        Yiddish, Yoruba, Zulu"""
    ),
    "month": (
        *_MONTHS,
        *_joined(("early", "late"), _MONTHS),
        *_words("spring, summer, autumn, winter, springtime, midwinter, carnival, monsoon, Easter, Christmas, Lent"),
        *_words("Advent, Midsummer, Halloween, Ramadan"),
    ),
    "day": (*_DAYS, *_joined(_DAYS, ("morning", "afternoon", "evening", "night", "noon"))),
    "instrument": _words(
        """piano, violin, cello, guitar, flute, drums, trumpet, harp, banjo, clarinet, saxophone, accordion, viola,
        trombone, oboe, ukulele, mandolin, organ, bass, harmonica, tuba, bassoon, lute, piccolo, xylophone,
        bagpipes, sitar, zither, alphorn, autoharp, balalaika, bandoneon, baritone, bongos, bouzouki, bugle,
        carillon, castanets, celesta, charango, clavichord, concertina, contrabass, cornet, cymbals, didgeridoo,
        djembe, dobro, dulcimer, erhu, euphonium, fiddle, flugelhorn, fortepiano, glockenspiel, gong, harpsichord,
        horn, kalimba, kazoo, keyboard, koto, lyre, maracas, marimba, melodica, melodeon, metallophone, musette,
        nyckelharpa, ocarina, ophicleide, oud, panpipes, pianola, recorder, saz, serpent, shakuhachi, shamisen,
        shawm, sousaphone, spinet, synthesizer, tabla, tambourine, theremin, theorbo, timpani, triangle, tubax,
        vibraphone, viol, virginal, washboard, whistle, zurna, bodhran, cittern, crumhorn, cimbalom, guzheng,
        handpan, mbira, qanun, rebec, santoor, sarod, steelpan, tanpura"""
    ),
}

_FIRST_NAMES = WORD_VALUES["person"][::2]
_LAST_NAMES = _words(
    """Keller, Novak, Fischer, Moreau, Lindgren, Okafor, Tanaka, Rossi, Silva, Haddad, Jensen, Kowalski, Murphy, Petrov,
    Schmidt, Alvarez, Bennett, Carver, Dalton, Ekström, Farrow, Gallagher, Hofer, Iversen, Jansen, Kaplan, Larsen,
    Mendoza, Nakamura, Olsen, Pereira, Quinn, Ramirez, Sandoval, Thornton, Ulmer, Vargas, Whitfield, Yilmaz, Zeller,
    Abbott, Brandt, Castillo, Dubois, Eriksen, Fontaine, Grant, Hughes, Ito, Joshi, Khan, Lambert, Meyer, Nilsson,
    Ortega, Patel, Reyes, Santos, Torres, Wagner"""
)
_LOOKS = _words(
    """blue, red, green, silver, golden, old, quiet, hidden, crooked, wandering, lonely, purple, wild, sleepy, white,
    black, lucky, bright, frozen, broken, tall, yellow, copper, happy"""
)
_SIGHTS = _words(
    """heron, lantern, garden, anchor, fox, mill, harbour, willow, pepper, violin, bridge, orchard, compass, sparrow,
    kettle, mountain, river, castle, pear, moon, bell, tower, acorn, ship, window, feather, rabbit, candle, meadow,
    crown"""
)
_HOUSES = _words("Café, Bistro, Kitchen, Tavern, Inn, Diner")
_GOODS = _words(
    """mountain bike, leather jacket, coffee machine, fountain pen, camping tent, rain coat, wool scarf, chess set,
    travel bag, sewing machine, record player, garden chair, paper lamp, table clock, cotton shirt, rocking chair,
    picture frame, tea pot, snow globe, music box, board game, picnic basket, hand mirror, silk tie, toy train,
    flower pot, desk lamp, tool box, straw hat, bread knife, door bell, shoulder bag, pocket watch, walking stick,
    water bottle, phone case, film camera, bass guitar, sun hat, beach towel"""
)
_STYLES = _words(
    """red, blue, green, black, white, old, new, large, tiny, cheap, striped, yellow, brown, second-hand, fancy, heavy,
    folding, grey, expensive, vintage"""
)
_ROADS = _words("Lane, Road, Street, Square, Hill, Close, Drive, Way, Court, Row, Terrace")


def _titled(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word.title() for word in words)


@cache
def composed_values(name: str) -> tuple[str, ...]:
    """Every value of one list of `COMPOSED_VALUES`."""
    looks, sights = _titled(_LOOKS), _titled(_SIGHTS)
    match name:
        case "age":
            return tuple(str(years) for years in range(11, 100))
        case "number":
            return tuple(str(number) for number in range(10, 1000))
        case "code":
            return tuple(str(code) for code in range(1000, 10_000))
        case "date":
            long = {"April": 30, "June": 30, "September": 30, "November": 30, "February": 28}
            return tuple(f"{day} {month}" for month in _MONTHS for day in range(1, long.get(month, 31) + 1))
        case "time":
            return tuple(f"{hour}:{minute:02d}" for hour in range(1, 24) for minute in range(60))
        case "full name":
            return _joined(_FIRST_NAMES, _LAST_NAMES)
        case "restaurant":
            return (*_joined(looks, sights), *_joined(looks, sights, _HOUSES))
        case "title":
            return (
                *_joined(("The",), looks, sights),
                *(f"The {one} and the {two}" for one in sights for two in sights if one != two),
            )
        case "thing":
            return _joined(_STYLES, _GOODS)
        case "address":
            return _joined([str(number) for number in range(2, 100, 3)], sights, _ROADS)
    raise KeyError(name)


COMPOSED_VALUES: Mapping[str, ValueKind] = {
    "age": "number",
    "number": "number",
    "code": "number",
    "date": "date",
    "time": "time",
    "full name": "phrase",
    "restaurant": "phrase",
    "title": "phrase",
    "thing": "phrase",
    "address": "phrase",
}


def kind_of(name: str) -> ValueKind:
    """What the values of a list are: lists of words, and any word ("word"), are of kind "word"."""
    return COMPOSED_VALUES.get(name, "word")


@cache
def values_of(name: str, split: Split) -> tuple[str, ...]:
    """The values of one list that belong to a split."""
    values = WORD_VALUES[name] if name in WORD_VALUES else composed_values(name)
    return split_values(values, split)
