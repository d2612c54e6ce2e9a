"""Replies on neutral matters, written for this project and used in evaluation alone.

How likely a model finds them says whether a memory disturbs it. None of them is about anybody in a conversation.
"""

from __future__ import annotations


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Blocks of a prompt's line and its reply's lines, blank lines between them."""
    blocks = [block.strip().split("\n", 1) for block in text.strip().split("\n\n")]
    return tuple((prompt.strip(), " ".join(reply.split())) for prompt, reply in blocks)


NEUTRAL_REPLIES = _pairs(
    """
    How do lighthouses work?
    A lighthouse is a tall tower with a strong lamp at its top. A set of curved lenses gathers the light and sends it
    out as a narrow beam, which turns around so that ships see it as regular flashes. Each lighthouse has its own
    rhythm, and sailors can look it up on a chart to find out where they are.

    Why do leaves change colour in autumn?
    In summer, leaves are full of a green substance that catches sunlight. When the days grow shorter, trees stop
    making it and draw what is useful back into their branches. The green fades, and yellow and orange tones that were
    there all along become visible. Red is made anew in some trees, mostly in cool and sunny weather.

    Describe a quiet morning in a harbour.
    The water lies still and reflects the masts of a dozen small boats. A man in a blue jacket coils a rope, while two
    gulls argue over something on the quay. Somewhere an engine starts, coughs, and falls silent again. The smell of
    tar and coffee hangs in the air, and the first light touches the roofs behind the market.

    Explain how bread rises.
    Yeast is a living thing that feeds on the sugar in flour. As it does so, it gives off gas, which collects in
    thousands of small bubbles. The dough is elastic enough to hold them and slowly swells. In the hot oven the
    bubbles expand once more, the crust hardens around them, and the loaf keeps its shape.

    What is a glacier?
    A glacier is a mass of ice that forms where more snow falls than melts over many years. The layers press on each
    other until the snow turns to solid ice. Pulled by its own weight, the ice flows slowly downhill, grinding the
    rock beneath it and carrying stones along. Where it ends, it leaves long walls of rubble behind.

    How should I store potatoes?
    Keep potatoes in a cool, dark and dry place with some air around them. A paper bag or a wooden box is better than
    plastic, which traps moisture. Do not put them beside onions, because both spoil faster that way. Green spots and
    long sprouts should be cut away generously before cooking.

    What is the purpose of a constitution?
    A constitution sets out how a state is governed and what its institutions may do. It divides power between
    parliament, government and courts, and it protects basic rights that no ordinary law can take away. Because it
    stands above other laws, changing it usually needs a larger majority than a normal decision does.

    Tell me about the history of paper.
    Paper was first made in China about two thousand years ago from bark, rags and old nets. The craft spread slowly
    along the trade routes to the west, where mills driven by water turned linen into sheets. Only in the nineteenth
    century did wood become the main raw material, and paper grew cheap enough for daily newspapers.

    How can I learn to draw?
    Start with simple shapes and draw every day, if only for ten minutes. Look at an object for longer than you look
    at the page, and try to see lines and shadows instead of names. Do not erase too much; a wrong line shows where
    the right one should be. After a few weeks, compare your new drawings with the first ones.

    What does a conductor do?
    A conductor leads an orchestra through a piece of music. With one hand the beat is shown, with the other loudness
    and expression. Most of the work, however, happens before the concert: choosing a tempo, balancing the groups,
    and explaining to dozens of musicians how a phrase should sound so that they play it as one.

    How does a refrigerator keep things cold?
    A refrigerator moves heat from the inside to the outside. A liquid flows through thin pipes behind the inner wall,
    where it evaporates and takes up warmth. A pump then presses the vapour together, which makes it hot, and at the
    back of the cabinet it gives the heat away to the room and becomes liquid again.

    Write a short scene in a railway station.
    The board above the platform flickered, and everyone looked up at once. A woman with a cello case sighed and sat
    down on her suitcase. "Forty minutes," said the guard, as though he had caused it himself. A child began to count
    the pigeons, lost track, and began again. Nobody seemed to be in a hurry any more.

    What are the rules of hide and seek?
    One player closes their eyes and counts to an agreed number while the others hide. Then the seeker opens their
    eyes, calls out, and starts to look for them. Whoever is found first becomes the next seeker. In some versions,
    players may run back to the starting point and touch it before they are caught.

    Why is the sea salty?
    Rain takes up a little acid from the air and dissolves minerals from rocks as it runs over them. Rivers carry
    these into the sea. Water leaves the sea again by evaporation, but the salts stay behind, and over millions of
    years they have built up. Hot springs on the sea floor add some more.

    How do I prepare for a long hike?
    Choose a route that fits the slowest person in the group and check the weather the evening before. Wear shoes that
    you have walked in already, and pack water, food, a map and something warm. Tell somebody where you are going and
    when you expect to be back. Start early, so that there is time to turn around.

    What is inflation?
    Inflation means that prices rise in general, so that the same amount of money buys less than before. It can come
    from high demand, from dearer raw materials, or from more money in circulation than there are goods. Central banks
    try to keep it low and steady, mostly by raising or lowering the rates at which banks can borrow.

    How do bees find their way?
    Bees use the sun as a compass and correct for its movement across the sky. On cloudy days they can still see how
    light is polarised, which tells them where the sun must be. Near the hive they remember landmarks such as trees
    and walls. A bee that has found flowers passes the direction on to others by dancing.

    Explain what an algorithm is.
    An algorithm is a list of steps that leads from a question to an answer. Every step must be clear enough to be
    carried out without further thought, and the list must come to an end. A recipe is an everyday example. Computers
    follow algorithms very quickly, but they follow the bad ones just as faithfully as the good ones.

    What makes a good photograph of a landscape?
    Good light matters more than a famous place, and the best of it comes shortly after sunrise and before sunset.
    Put something of interest into the foreground so that the eye has a way into the picture. Keep the horizon level,
    and place it high or low rather than in the middle. Then wait; clouds and people move.

    What was life like in a medieval town?
    Streets were narrow, and most houses were built of wood and clay. Craftsmen worked where they lived, with the
    workshop open to the street. Water came from wells, and waste went into the gutter. Twice a week the market filled
    the square with farmers, traders and travellers, and at dusk the gates were closed until morning.

    How do I repot a plant?
    Take a pot that is a little wider than the old one and put some gravel over the hole. Water the plant an hour
    before, then turn it over gently and loosen the roots. Set it into fresh soil at the same height as before, press
    lightly, and water again. Keep it out of strong sun for a few days.

    What is a metaphor?
    A metaphor describes one thing by the name of another with which it shares a quality. To call a voice velvet says
    that it is soft without using the word. Metaphors are not only found in poems; whole areas of daily speech rest on
    them, as when time is spent, saved or wasted like money.

    How does a suspension bridge carry its load?
    The road of a suspension bridge hangs from two thick cables that run over tall towers. The weight pulls on the
    cables, the cables press down on the towers, and heavy blocks in the ground hold their ends. Because steel is very
    strong when it is pulled, such bridges can cross wide rivers without a single pillar in the water.

    Give some advice for a first job interview.
    Read about the company beforehand and think of two or three questions of your own. Arrive ten minutes early,
    greet everyone, and listen to the end of each question before you answer. Give short examples of what you have
    done rather than long lists of qualities. If you do not know something, say so calmly.

    Why do cats purr?
    Cats purr by moving muscles in the throat very fast while they breathe in and out. Most often it is a sign that
    they feel safe, as when they lie in the sun or are being stroked. But they also purr when they are hurt or afraid,
    perhaps to calm themselves. Kittens purr while they drink, which tells their mother that all is well.

    Describe the taste of a lemon to someone who has never had one.
    The first thing is a sharpness that pulls the cheeks together and makes the mouth water. Behind it there is a
    bright, fresh note, a little like cut grass, and a trace of bitterness from the peel. There is hardly any
    sweetness. After a moment the sharpness fades, and the mouth feels clean.

    What is the water cycle?
    The sun warms the sea, and water rises into the air as vapour. High up it cools and forms clouds of tiny drops.
    When these grow heavy, they fall as rain or snow. Some of it runs into rivers, some sinks into the ground, and
    some is taken up by plants, until all of it reaches the air or the sea again.

    How do elections by proportional representation work?
    Each party receives a share of the seats that matches its share of the votes. Voters usually choose a list rather
    than a single person. Small parties therefore have a better chance than where only the winner of each district is
    elected, and governments often have to be formed by several parties together.

    Explain how to read a contour map.
    The thin brown lines on the map join points of equal height. Where they lie close together, the ground is steep;
    where they are far apart, it is gentle. Closed rings mark a hilltop, and lines that bend like a V point up a
    valley. Find two numbers on neighbouring lines to learn how much the ground rises from one to the next.

    Write about the smell of rain.
    When the first drops fall on dry ground, they trap tiny bubbles of air and throw them up again. With them rises an
    oil that plants have left on the stones, and a trace of earth made by bacteria. The smell is strongest after long
    heat, and it is gone within minutes, once everything is wet.

    What is the difference between a crow and a raven?
    Ravens are larger and heavier, with a thick bill and a shaggy throat. In flight the tail of a raven looks like a
    wedge, that of a crow like a fan. Crows live in noisy groups near people, while ravens prefer hills and coasts and
    are mostly seen in pairs. A crow caws; a raven croaks, much deeper.

    How is glass made?
    Sand, soda and limestone are melted together in a furnace at a very high temperature. The glowing mass can be
    blown, pressed into a mould, or floated on liquid tin to make flat panes. It must then cool slowly for hours,
    because glass that cools too fast keeps tensions inside and breaks at the slightest touch.

    Why do we have leap years?
    The earth takes a little less than a quarter of a day more than three hundred and sixty-five days to travel around
    the sun. Without a correction, the calendar would drift through the seasons. One extra day every four years makes
    up for most of it, and leaving it out in some centuries makes up for the rest.

    What should one know about compost?
    Compost needs a mixture of green and brown matter, such as kitchen scraps and dry leaves. Keep it as damp as a
    wrung-out sponge and turn it now and then, so that air reaches the middle. Meat and cooked food attract rats and
    should stay out. After half a year the heap has become dark, crumbly soil.

    How did people measure time before clocks?
    They watched the shadow of a stick move over the ground, and later over a stone dial. At night and on dull days
    they used water that dripped from one vessel into another, candles with marks on them, or sand. Bells told the
    town when to rise, work and rest, and nobody minded a quarter of an hour.

    What is a coral reef?
    A coral reef is built by small animals that live together in great numbers and leave limestone behind when they
    die. New ones settle on top, and over centuries a wall grows up in the warm, shallow sea. Its holes and ledges
    give shelter to a quarter of all kinds of fish, although reefs cover only a tiny part of the ocean floor.
    """
)
