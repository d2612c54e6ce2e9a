"""What can be told of the user in training with a number, a date, a time or several words as its value."""

from __future__ import annotations

from deltamem_agents.lab.training.attributes import Attribute, names_of, plain

COMPOSED_ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "locker number",
        "number",
        told=("They gave me locker {v}.", "I put my things into locker {v}."),
        asked=("Which locker is mine?", "In which locker are my things?"),
        changed=("I was moved to locker {v}.",),
        arranged=(("I need a locker for my things.", "No problem, I have given you locker {v}."),),
    ),
    Attribute(
        "room number",
        "number",
        told=("I am staying in room {v}.", "You can find me in room {v}."),
        asked=("Which room am I staying in?", "In which room can people find me?"),
        changed=("They moved me to room {v}.",),
        arranged=(
            ("Can you book me a room?", "I have booked you into room {v}."),
            ("I'd like to check in, please.", "Welcome! You will be in room {v}, on the left."),
        ),
    ),
    Attribute(
        "seat number",
        "number",
        told=("On the train I sit in seat {v}.", "I have seat {v} on the flight."),
        asked=("Which seat do I have?", "Where do I sit on the train?"),
        arranged=(("Please reserve a seat for me.", "Done, you have seat {v}, at the window."),),
    ),
    Attribute(
        "age",
        "age",
        told=("I am {v} years old.", "I turned {v} this year.", "At {v} I feel as young as ever."),
        asked=("How old am I?", "What age am I?"),
        changed=("It was my birthday, so I am {v} now.",),
    ),
    Attribute(
        "PIN",
        "code",
        told=("I use {v} to unlock my phone.", "My phone opens with {v}."),
        asked=("How do I unlock my phone?", "Which digits open my phone?"),
    ),
    Attribute(
        "order number",
        "code",
        told=("I ordered something, it has the number {v}.",),
        asked=("Under which number did I order?",),
        arranged=(
            ("I would like to order the lamp.", "Thank you for your order. Your order number is {v}."),
            ("Has my order gone through?", "It has. You can follow it under number {v}."),
        ),
    ),
    Attribute(
        "bus line",
        "number",
        told=("I take bus {v} to work.", "For the office I have to catch bus {v}."),
        asked=("Which bus do I take to work?",),
        changed=("They closed that line, so I take bus {v} to work now.",),
    ),
    *plain(
        """house number, flat number, parking space, jersey number, queue number, shoe size, ticket number, weight,
        height, floor, table number, apartment number, bed number, score, gate number, page number""",
        "number",
    ),
    *plain(
        """alarm code, gate code, phone extension, invoice number, member number, postcode, case number, licence number,
        customer number, booking code, safe code, student number, tax number, voucher code""",
        "code",
    ),
    *plain("retirement age, son's age, daughter's age, lucky number", "age"),
    Attribute(
        "birthday",
        "date",
        told=("I was born on {v}.", "I celebrate my birthday on {v}."),
        asked=("When was I born?", "On which date do I celebrate my birthday?"),
    ),
    Attribute(
        "moving date",
        "date",
        told=("We are moving on {v}.", "The removal van comes on {v}."),
        asked=("When are we moving?", "On which date does the removal van come?"),
        changed=("The move is postponed to {v}.",),
        arranged=(("Please book the removal van.", "I have booked the removal van for {v}."),),
    ),
    Attribute(
        "flight date",
        "date",
        told=("I am flying on {v}.", "My plane leaves on {v}."),
        asked=("When am I flying?", "On which date does my plane leave?"),
        changed=("My flight was rebooked to {v}.",),
        arranged=(("Find me a cheap flight.", "The cheapest flight leaves on {v}, so I took that one."),),
    ),
    *plain(
        """wedding anniversary, exam date, deadline, delivery date, start date, appointment date, interview date,
        concert date, check-up date, first day at school, renewal date, sister's birthday, mother's birthday,
        house-warming date, inspection date""",
        "date",
    ),
    Attribute(
        "alarm time",
        "time",
        told=("I get up at {v}.", "I have set my alarm to {v}."),
        asked=("When do I get up?", "To what time have I set my alarm?"),
        changed=("I get up at {v} now.",),
        arranged=(("Please set an alarm.", "Your alarm is set to {v}."),),
    ),
    Attribute(
        "train time",
        "time",
        told=("I am taking the {v} train.", "My train leaves at {v}."),
        asked=("When does my train leave?", "Which train am I taking?"),
        changed=("I missed it and am taking the {v} train instead.",),
        arranged=(("Which train should I take?", "You should take the train at {v}, I think."),),
    ),
    *plain(
        """bedtime, lunch break, class time, check-in time, haircut time, yoga time, meeting time, dinner time,
        medication time, feeding time, closing time, call time, nap time, show time""",
        "time",
    ),
    *names_of(
        "accountant, lawyer, supervisor, plumber, estate agent, piano teacher, tutor, contact person", "full name"
    ),
    *plain("doctor's full name, manager's full name, pen name, emergency contact, co-author, babysitter", "full name"),
    Attribute(
        "favourite restaurant",
        "restaurant",
        told=("We eat at {v} whenever we can.", "I love the food at {v}."),
        asked=("Where do we eat whenever we can?", "Which restaurant do I love?"),
    ),
    *plain("local pub, lunch spot, meeting place, wedding venue, first date venue, favourite bistro", "restaurant"),
    Attribute(
        "current read",
        "title",
        told=("I am reading {v} at the moment.", "On my bedside table lies {v}, half read."),
        asked=("What am I reading at the moment?", "Which book lies on my bedside table?"),
        changed=("I finished that book and am reading {v} now.",),
    ),
    *plain("favourite novel, favourite musical, favourite series, favourite album, school play, first film", "title"),
    Attribute(
        "latest purchase",
        "thing",
        told=("I bought a {v} on Saturday.", "At the flea market I found a {v} for little money."),
        asked=("What did I buy on Saturday?", "What did I find at the flea market?"),
    ),
    *plain("prized possession, raffle prize, anniversary gift, birthday wish, most useful thing, souvenir", "thing"),
    *plain("address, office address, parents' address, clinic address, delivery address", "address"),
)
