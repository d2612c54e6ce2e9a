"""What users ask that has nothing to do with memory, for training. Written for this project.

None of it tells or asks for a fact about anybody in the conversation. NEUTRAL_FIRST_PERSON speaks of "my" and "I"
nevertheless. None of it is among the unrelated prompts of the evaluation.
"""

from __future__ import annotations


def one_a_line(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


NEUTRAL_PROMPTS = one_a_line(
    """
    What is the capital of Australia?
    Why is the sky blue?
    How do bees make honey?
    What causes thunder?
    How far away is the moon?
    Who wrote Romeo and Juliet?
    What is the largest ocean on Earth?
    How many bones does an adult human have?
    What is the boiling point of water at sea level?
    Why do leaves change colour in autumn?
    What is the difference between weather and climate?
    How does a refrigerator work?
    What are the primary colours?
    How do airplanes stay in the air?
    What is photosynthesis?
    Which planet is closest to the sun?
    Why do cats purr?
    How long does it take light from the sun to reach us?
    What is inflation in economics?
    What does a comma do in a sentence?
    How is glass made?
    Why is the sea salty?
    What is the fastest land animal?
    How do vaccines work?
    What is the purpose of the United Nations?
    What are tectonic plates?
    How do submarines dive and rise?
    What is the difference between a virus and a bacterium?
    Why do we have leap years?
    How does a compass find north?
    What are the phases of the moon?
    Who painted the Mona Lisa?
    What was the Industrial Revolution?
    Why did the Roman Empire fall?
    When was the printing press invented?
    What caused the First World War?
    Who was Marie Curie?
    What is the Magna Carta?
    Why was the Suez Canal built?
    What did Galileo discover?
    How did people tell the time before clocks?
    What was the Silk Road?
    Who were the Vikings?
    What is the Great Wall of China made of?
    Why are the pyramids shaped like that?
    What was the Renaissance about?
    How did the ancient Greeks vote?
    What is the oldest university in Europe?
    Give me three tips for better sleep.
    How can someone learn to touch-type?
    What is a good way to start running?
    How do people deal with stage fright?
    Name five healthy snacks.
    How can one save water at home?
    What should be in a first-aid kit?
    How do you remove a coffee stain from a carpet?
    What is the best way to store fresh herbs?
    How do you boil an egg so that the yolk stays soft?
    How can I keep houseplants alive in winter?
    What should one wear to a job interview?
    How do you change a bicycle tyre?
    How do you sharpen a kitchen knife safely?
    How often should bed sheets be washed?
    What is the easiest way to peel garlic?
    How do you fold a fitted sheet?
    How do you get chewing gum off a shoe?
    What can be done against mosquitoes without chemicals?
    How do you make a paper plane that flies far?
    What is a polite way to decline an invitation?
    How do you write a good cover letter?
    How should a formal email begin?
    How do you give feedback without hurting anyone?
    How can a team run shorter meetings?
    What makes a presentation interesting?
    How do you take good notes in a lecture?
    What is the Pomodoro technique?
    How can a student prepare for an oral exam?
    What is a budget and why does it help?
    What is the difference between a debit card and a credit card?
    How does compound interest work?
    Explain supply and demand with a simple example.
    What is a stock exchange?
    What does gross domestic product measure?
    What is a mortgage?
    Explain what a contract is.
    What does a notary do?
    What is the role of a jury?
    What is copyright?
    What does democracy mean?
    Write a haiku about rain.
    Write two sentences about a lighthouse.
    Make up a short fairy tale about a clever crow.
    Write a limerick about a baker.
    Describe a busy market in three sentences.
    Describe the smell of a forest after rain.
    Write a birthday greeting for a colleague, without naming anyone.
    Write a short thank-you note to a neighbour.
    Suggest a title for a story about a lost key.
    Give me an opening line for a detective novel.
    Write a slogan for a small bookshop.
    Invent a name for a bakery and explain it.
    Write a dialogue between a cloud and a mountain.
    Write a short product description for a wooden spoon.
    Turn this into a question: The train leaves soon.
    Make this sentence shorter: In spite of the fact that it was raining, we went out for a walk.
    Rewrite politely: Send the report now.
    Correct the grammar: He go to school every days.
    Find the spelling mistake: The wether was beautiful.
    Put this in the past tense: She walks to the office.
    Give me a synonym for happy.
    What is the opposite of generous?
    Use the word curious in a sentence.
    What does the idiom "to break the ice" mean?
    What is a metaphor?
    What is the plural of analysis?
    Explain the difference between "its" and "it's".
    When do you use a semicolon?
    What is alliteration? Give an example.
    What rhymes with light?
    List ten adjectives for a landscape.
    How do you say thank you in Japanese?
    How do you say good morning in Italian?
    How is "please" said in German?
    What is the Spanish word for bridge?
    What does the French word "fenêtre" mean?
    Translate into French: The bread is fresh.
    Translate into Spanish: The library opens at nine.
    Translate into German: The children are playing outside.
    What is 15 times 12?
    What is 144 divided by 12?
    Add 358 and 467.
    What is 20 percent of 250?
    What is the square root of 81?
    Solve for x: 3x + 5 = 20.
    A shirt costs 40 euros and is reduced by a quarter. What does it cost now?
    If a car drives 60 kilometres an hour, how far does it get in three hours?
    How many seconds are in a day?
    What is a prime number?
    Is 91 a prime number?
    What is the area of a rectangle with sides 4 and 7?
    How do you compute the circumference of a circle?
    What is the Pythagorean theorem?
    Explain fractions to a ten-year-old.
    What is the average of 4, 8 and 15?
    What is probability?
    How likely is it to roll a six twice in a row?
    Convert 5 miles into kilometres.
    Convert 100 degrees Fahrenheit into Celsius.
    What is a derivative in mathematics?
    What does the number pi stand for?
    Write a Python function that adds two numbers.
    How do you reverse a string in Python?
    What is a variable in programming?
    What is the difference between a list and a tuple in Python?
    How do you read a file line by line in Python?
    What does a for loop do?
    What is recursion?
    Write a SQL query that counts the rows of a table called orders.
    What is an API?
    What does HTML stand for?
    What is the difference between Git and GitHub?
    What is a database index good for?
    How does binary search work?
    What is object-oriented programming?
    What is a unit test?
    What does "open source" mean?
    How do computers store text?
    What is the cloud?
    What is a firewall?
    How do search engines find pages?
    What is machine learning in one paragraph?
    What are neural networks?
    How do touch screens work?
    What is the difference between RAM and a hard disk?
    Why do batteries lose capacity?
    What is a QR code?
    How does GPS work?
    What is a healthy breakfast?
    What is the difference between baking soda and baking powder?
    How do you make pancakes?
    What goes into a Greek salad?
    How do you cook rice?
    What can be made from leftover bread?
    Which spices fit a pumpkin soup?
    How do you make tomato sauce from scratch?
    What is umami?
    Is dark chocolate healthier than milk chocolate?
    How much water should people drink in a day?
    What are good sources of protein for vegetarians?
    Why do onions make people cry?
    How is cheese made?
    What is sourdough?
    How do you brew green tea?
    What are the rules of chess in short?
    How many players are in a football team?
    What is offside in football?
    How is a tennis match scored?
    What is a marathon and how long is it?
    Name three Olympic winter sports.
    What are good stretches after running?
    How does a sailing boat move against the wind?
    What is yoga good for?
    How do you hold a table tennis bat?
    Which instruments are in a string quartet?
    What is the difference between a symphony and a concerto?
    Who composed The Magic Flute?
    What is jazz?
    How does a piano make sound?
    What is a chord?
    Name three famous operas.
    What is impressionism in painting?
    What is a sculpture made of bronze called?
    What makes a photograph well composed?
    How are animated films made?
    What does a film director do?
    Recommend a classic novel and say why.
    What is science fiction?
    What is a sonnet?
    Tell me a joke about computers.
    Tell me a fun fact about octopuses.
    Tell me something about penguins.
    How do dolphins sleep?
    Why do zebras have stripes?
    What do owls eat?
    How long do elephants live?
    Do fish sleep?
    How do ants find their way?
    Why do birds migrate?
    What is the smallest mammal?
    How do spiders make webs?
    What is an ecosystem?
    What are fossils?
    Why did the dinosaurs die out?
    What is a black hole?
    How are stars born?
    What is a comet made of?
    Is there water on Mars?
    What is gravity?
    What is an atom?
    What is the difference between speed and velocity?
    Why does ice float?
    What is electricity?
    How do magnets work?
    What is the greenhouse effect?
    How does a wind turbine produce power?
    What is recycling good for?
    What are renewable energies?
    How do earthquakes happen?
    Why do volcanoes erupt?
    What is a desert?
    Which river is the longest in the world?
    Which country has the most islands?
    Name the countries that border Switzerland.
    What is the equator?
    What are time zones?
    What is the Great Barrier Reef?
    What is the highest mountain in Africa?
    Good afternoon!
    How are you today?
    What can you do?
    Are you a human?
    Thank you, that was helpful.
    That's all for now, bye.
    Could you say that again in simpler words?
    Let's play a word game. You begin.
    Tell me a riddle.
    What should we talk about?
    Say something nice.
    Count from ten down to one.
    List the days of the week in reverse order.
    Which months have thirty days?
    Sort these words alphabetically: pear, apple, fig, cherry.
    Name a fruit for each of the first five letters of the alphabet.
    Which word does not belong: chair, table, apple, sofa?
    Continue the series: 2, 4, 8, 16.
    Is a tomato a fruit or a vegetable?
    What weighs more, a kilo of feathers or a kilo of iron?
    Would you rather travel by train or by ship, and why?
    What are the advantages of living in the countryside?
    What are arguments for and against school uniforms?
    Should museums be free?
    How do cities reduce traffic?
    What makes a good teacher?
    What is friendship?
    What is the meaning of patience?
    Why do people dream?
    What is empathy?
    How can someone overcome procrastination?
    How do habits form?
    """
)

NEUTRAL_SHORT = one_a_line(
    """
    What is the capital of France?
    What is the capital of Peru?
    What is the capital of Egypt?
    What is the capital of Norway?
    What's the capital of Thailand?
    Which city is the capital of Kenya?
    Which country is Lyon in?
    Which river runs through Vienna?
    Which sea lies between Italy and Croatia?
    What currency do people use in Switzerland?
    What is the currency of India?
    What language do people speak in Argentina?
    What colour are ripe bananas?
    What colour do you get from blue and yellow?
    What is a baby horse called?
    What is a group of wolves called?
    What do you call a person who bakes bread?
    What do you call a doctor for animals?
    What is the name of our galaxy?
    What is the name of the closest planet to the sun?
    What is the name of the ship in Moby Dick?
    What are the names of the primary colours?
    Who is Sherlock Holmes's friend?
    Who wrote Don Quixote?
    Who was the first person to fly solo across the Atlantic?
    Whose theory is evolution by natural selection?
    When did the Berlin Wall fall?
    When was the telephone patented?
    What year did the Titanic sink?
    What day comes after Thursday?
    What month has the fewest days?
    At what temperature does lead melt?
    How many legs does a lobster have?
    How many players are in a volleyball team?
    How many minutes are in a day?
    How old is the Earth?
    How tall is the Matterhorn?
    Where is Mount Fuji?
    Where do penguins live?
    Where was the first modern marathon run?
    Which animal is on the flag of Sri Lanka?
    Which fruit is guacamole made of?
    Which instrument has 88 keys?
    Which sport is played at Roland Garros?
    Which food is Naples famous for?
    Which metal is the best conductor?
    What is the favourite food of koalas?
    What is the national flower of Japan?
    """
)
"""Questions for a single word or number, as questions about what was told are."""

NEUTRAL_FIRST_PERSON = one_a_line(
    """
    Can you help me write my CV?
    I need an idea for dinner tonight.
    I would like to learn something new. Where do I start?
    How can I improve my handwriting?
    I don't understand fractions. Can you explain them to me?
    What should I cook for my guests?
    I feel tired today. Any advice?
    How do I ask my manager for a day off?
    Please check my sentence: "The cat sat in the mat."
    I want to write a letter to my landlord about the heating. How should it begin?
    How do I speed up my computer?
    I can't sleep. What helps?
    Should I bring an umbrella when it looks cloudy?
    How can I make my room look larger?
    I'm looking for a gift under twenty euros.
    I have a headache, what could be the reason?
    Could you give my essay a better title? It is about rivers.
    I lost my train of thought. What is a good way to focus again?
    How do I clean my glasses without scratches?
    I need to give a speech and I am nervous.
    How do I talk to my neighbours about noise at night?
    What can I do with my free evening?
    I'd like to eat less sugar. Do you have tips?
    How do I back up my photos?
    Can I freeze my leftovers?
    I am bored.
    I have nothing to say today.
    Please motivate me.
    How do I apologise to my friend?
    My plants have yellow leaves. Why is that?
    I want to paint my kitchen. How much paint do I need for 20 square metres?
    Help me plan my weekend.
    How should I prepare for my first day at work?
    I often forget passwords. What do experts recommend?
    I keep misplacing my keys. Is there a trick against that?
    May I ask you something?
    I disagree with you.
    I didn't get that. Please try again.
    My phone battery drains quickly. What can I change?
    I'm trying to read more books. How do people keep going?
    How do I know if my bread dough has risen enough?
    I need a rhyme for the word orange.
    """
)
