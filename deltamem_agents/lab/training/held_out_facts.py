"""What is told of the user for evaluation only: attributes that training never mentions."""

from __future__ import annotations

from deltamem_agents.lab.training.attributes import Attribute, jobs_of, names_of, plain

HELD_OUT_WORD_ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "favourite flower",
        told=("Nothing in the garden beats the {v}.",),
        asked=("What beats everything in the garden for me?",),
    ),
    Attribute(
        "tattoo",
        "animal",
        told=("There is a {v} tattooed on my arm.",),
        asked=("What do I have tattooed on my arm?",),
        changed=("The artist turned it into a {v}.",),
    ),
    Attribute(
        "roof colour",
        "colour",
        told=("Our roof has been painted {v}.",),
        asked=("In which colour has our roof been painted?",),
    ),
    Attribute(
        "ancestors' country seat",
        "place",
        told=("My family goes back to {v}.",),
        asked=("Where does my family go back to?",),
    ),
    Attribute(
        "midnight craving",
        "food",
        told=("At midnight I crave {v}.",),
        asked=("What do I crave at midnight?",),
    ),
    Attribute(
        "opening act",
        told=("Before the main concert we heard {v}.",),
        asked=("Who played before the main concert?",),
    ),
    *plain(
        """lucky word, favourite spice, hideout, door code word, quiz team, sailing crew, favourite mineral, puppet,
        startup idea, costume, horoscope app, favourite proverb, radio station, bowling team, favourite font,
        scented candle, antique shop, folder label, sourdough starter, plant pot, film club, war cry""",
        "word",
    ),
    *names_of("aunt, landlord, dentist, goddaughter, violin maker", "person"),
    *names_of("rabbit, tortoise, ferret, canoe", "pet"),
    *plain("grandparents' city, summer house location, cruise port, pilgrimage goal", "place"),
    *plain("favourite vegetable, favourite soup, midsummer meal", "food"),
    *plain("umbrella colour, eye shadow", "colour"),
    *plain("favourite insect, coat of arms", "animal"),
    *plain("retirement plan", "hobby"),
    *plain("ancestral tongue", "language"),
    *jobs_of("uncle, grandfather"),
)
HELD_OUT_COMPOSED_ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "cabin number",
        "number",
        told=("On the ship we sleep in cabin {v}.",),
        asked=("In which cabin do we sleep on the ship?",),
        arranged=(("We would like to come aboard.", "Cabin is ready, please go to {v} on the lower deck."),),
    ),
    *plain("badge number, bib number, hymn number, exhibit number, grandmother's age", "number"),
    *plain("safe combination, petition number, library card number, prescription number", "code"),
    *plain("graduation date, reunion date, surgery date, premiere date, harvest date", "date"),
    *plain("boarding time, curfew, pickup time, kick-off time, sunrise alarm", "time"),
    *names_of("notary, godfather, midwife, marriage witness", "full name"),
    *plain("favourite tavern, rehearsal dinner place", "restaurant"),
    *plain("bedside book, school anthem", "title"),
    *plain("lost item, theatre prop", "thing"),
    *plain("grandmother's address, hideaway address", "address"),
)
