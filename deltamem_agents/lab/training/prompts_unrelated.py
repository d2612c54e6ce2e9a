"""What users ask that has nothing to do with memory, for evaluation alone. Written for this project.

Other tasks and other topics than the neutral prompts of training: more instructions, given texts, code to read,
roles, formats. None of it tells or asks for a fact about anybody in the conversation, UNRELATED_FIRST_PERSON
although it speaks of "my" and "I".
"""

from __future__ import annotations

from deltamem_agents.lab.training.prompts_neutral import one_a_line

UNRELATED_PROMPTS = one_a_line(
    """
    Summarise in one sentence: The committee met on three occasions, heard eleven witnesses and could not agree.
    Summarise: Cork floats because it is full of tiny pockets of air, which also make it a good insulator.
    Shorten to ten words: Owing to works on the line, passengers are asked to use the replacement buses outside.
    Classify as positive or negative: The soup was cold and nobody apologised.
    Classify as positive or negative: What a delightful little theatre!
    Is this sentence active or passive: The bridge was closed by the police.
    Extract all numbers: Chapter 7 has 31 pages, of which 4 are pictures.
    Extract the verbs: The gardener trims the hedge and waters the roses.
    Which of these are adjectives: quickly, bright, run, heavy, table?
    Rewrite in the style of a pirate: The meeting has been postponed.
    Rewrite as a newspaper headline: A cow walked into a supermarket and bought nothing.
    Rewrite without the letter e: The weather is fine.
    Turn into bullet points: First boil the water, then add the salt, and finally put in the pasta.
    Turn these notes into a sentence: museum, closed, Mondays, except holidays.
    Expand this into a short paragraph: Trains beat planes on short routes.
    Change to indirect speech: "The shop is shut," said the guard.
    Add punctuation: when the bell rang everyone ran outside even the teachers
    Which version is more formal: "Hang on" or "Please wait a moment"?
    Translate into Dutch: The bicycle is behind the house.
    Translate into Portuguese: Two coffees, please.
    Translate into Italian: The museum is closed on Tuesdays.
    Translate into English: Der Mond scheint hell.
    Translate into English: El perro duerme debajo de la mesa.
    Translate into English: Il pleut depuis ce matin.
    What language is this: "Hvor er stationen?"
    How would a Swede greet someone in the morning?
    Which languages are written from right to left?
    Where does the word "robot" come from?
    What is the etymology of "salary"?
    Explain the saying "a stitch in time saves nine".
    What is meant by "crocodile tears"?
    Give three homophones in English.
    What is an oxymoron?
    Name a palindrome with five letters.
    Which letters of the alphabet are vowels?
    What does this code print: print(3 * "ab")
    What does this code print: print(len([1, 2, 3]) + 1)
    Find the bug: for i in range(10) print(i)
    What is wrong with this line: if x = 5:
    Rewrite as a list comprehension: out = []; for n in nums: out.append(n * 2)
    Write a JavaScript function that returns the larger of two numbers.
    Write a regular expression that matches a four-digit year.
    Write a shell command that lists all files larger than one megabyte.
    Write an HTML button with the text Send.
    Write CSS that centres a heading.
    Give the JSON for a book with a title, a year and two authors.
    What is the time complexity of bubble sort?
    Explain what a hash table does.
    What is the difference between a process and a thread?
    What is a race condition?
    What does the command "git rebase" do?
    What is a null pointer?
    Why is floating-point arithmetic not exact?
    What is a stack overflow?
    Name two advantages of static typing.
    What is continuous integration?
    Describe the client-server model.
    What is the purpose of DNS?
    What happens when a web page is loaded over HTTPS?
    What is a Turing machine?
    Compute 17 squared.
    What is 1001 minus 487?
    Which is larger, 5/8 or 2/3?
    Write 0.375 as a fraction.
    Factorise x squared minus 9.
    How many edges does a cube have?
    What is the sum of the angles in a hexagon?
    A recipe for four needs 300 grams of flour. How much for six?
    Three pens cost 4.50. How much do seven cost?
    A tank fills in 8 minutes through one pipe and in 8 through another. How long with both?
    If all glims are trobs and no trob is red, can a glim be red?
    A farmer has 17 sheep and all but nine run away. How many are left?
    How many ways are there to arrange three books on a shelf?
    What is the median of 3, 9, 4, 1 and 7?
    What is the next prime after 31?
    Round 3.14159 to two decimal places.
    What is the binary form of 13?
    Convert 2.5 hours into minutes.
    How many litres are in a cubic metre?
    Express 72 kilometres per hour in metres per second.
    What is the slope of the line y = 4x - 1?
    Integrate 2x with respect to x.
    What does the symbol for infinity look like, and who used it first?
    State Newton's second law.
    What is the half-life of a radioactive substance?
    Why does a spoon look bent in a glass of water?
    What is Ohm's law?
    How does soap remove grease?
    Balance the equation: H2 + O2 becomes H2O.
    What is the pH of pure water?
    Which gas makes up most of the air?
    What is an isotope?
    Why does iron rust?
    What is the function of the mitochondria?
    How many chambers does a human heart have?
    What do white blood cells do?
    What is the difference between veins and arteries?
    Why do muscles ache after exercise?
    What does insulin do?
    How do corals reproduce?
    What is convergent evolution?
    How do bats find insects in the dark?
    What is a marsupial?
    Why are flamingos pink?
    Which tree can live longest?
    What do lichens consist of?
    How do glaciers shape valleys?
    What is a fjord?
    Which strait separates Europe from Africa?
    What is the deepest lake in the world?
    Name three landlocked countries in Africa.
    Which city was formerly called Constantinople?
    What is the currency of Poland?
    Which countries lie on the island of Borneo?
    What is the Ring of Fire?
    Who was the first person in space?
    What happened at the Battle of Hastings?
    Why was the Berlin Wall built?
    What did the Rosetta Stone make possible?
    Who was Hypatia of Alexandria?
    What was the Hanseatic League?
    What was the Congress of Vienna about?
    Who led the Haitian Revolution?
    What was the Meiji Restoration?
    What is the code of Hammurabi?
    How did the Black Death spread?
    What was the Marshall Plan?
    When did Iceland become independent?
    What is utilitarianism?
    What did Descartes mean by "I think, therefore I am"?
    Explain the trolley problem.
    What is the difference between ethics and law?
    What is the placebo effect?
    What is confirmation bias?
    What is a Nash equilibrium?
    What is opportunity cost?
    What is the task of a central bank?
    How does a lottery make a profit?
    What is a patent?
    What is the difference between a will and a trust?
    What is habeas corpus?
    What does the separation of powers mean?
    What is a referendum?
    Act as a museum guide and welcome a group.
    Act as a ship's captain and announce a storm.
    Pretend to be a teapot and complain about your day.
    You are a weather forecaster. Give the outlook for a fictional town.
    Play the part of a strict librarian in two sentences.
    Write the first verse of a lullaby.
    Write a four-line poem about an empty station.
    Write a riddle whose answer is "shadow".
    Write a tongue twister with the letter s.
    Write a one-sentence horror story.
    Write a toast for a wedding of two people, names left out.
    Write a complaint about a late parcel, in three sentences.
    Write a job advertisement for a lighthouse keeper.
    Write a fable with a snail and its moral.
    Write an acrostic for the word SNOW.
    Write the rules of an invented ball game in five lines.
    Write a recipe for an imaginary drink.
    Write an apology from a cat to a sofa.
    Draft an out-of-office message for one week.
    Draft an agenda for a meeting of half an hour.
    Draft a tweet that announces a street festival.
    Draft a short speech for the opening of a bridge.
    Compose a text message that cancels a dinner kindly.
    Give me a plan for learning to juggle in seven days.
    Make a packing list for a weekend of camping.
    Make a table with three planets and their number of moons.
    Give pros and cons of electric scooters.
    Compare tea and coffee in two sentences.
    Compare novels and short stories.
    Rank these by size: mouse, whale, horse, ant.
    Put in chronological order: steam engine, wheel, internet, telescope.
    Which one is the odd one out: violin, cello, trumpet, viola?
    Complete the analogy: bird is to nest as bee is to what?
    Fill the gap: Neither the rain ___ the wind could stop them.
    Guess the animal: it carries its house and is slow.
    What comes next: A, C, F, J?
    Answer with yes or no: Is the sun a star?
    Answer with a single word: What do caterpillars turn into?
    Explain rainbows without using the word "light".
    Explain blockchain to a grandparent.
    Explain why the moon seems larger near the horizon.
    Explain how a zip works.
    Explain the offside trap like a sports commentator.
    What is the best way to remove a splinter?
    How is a burn treated at home?
    How does one rescue an overwatered cactus?
    How can a scratched table be repaired?
    What is the safest way to carry a heavy box?
    How do you tie a bowline knot?
    How do you tune a guitar?
    How do you fold an origami crane?
    How is a soufflé kept from collapsing?
    What wine goes with grilled fish?
    What is the difference between stock and broth?
    How long can cooked pasta be kept?
    What does "al dente" mean?
    Name three dishes from Ethiopia.
    What is a roux?
    What should a beginner know about bird feeding?
    Which board games work well for two?
    How does a decathlon work?
    What is the Fosbury flop?
    Why do golf balls have dimples?
    Who choreographed the first Swan Lake?
    What is counterpoint in music?
    What is a fresco?
    What is brutalist architecture?
    Which novel begins in a coffee house in your imagination? Make one up.
    Hey, what's up?
    Nice to see you again.
    Knock knock.
    Do you ever get bored?
    Are you able to see pictures?
    Who made you?
    What would you do on a desert island?
    Tell me about a colour that doesn't exist.
    Never mind, forget the question.
    Cool, thanks a lot!
    Ok.
    """
)

UNRELATED_FIRST_PERSON = one_a_line(
    """
    Could you proofread my report if I paste it here?
    Which questions should I expect when I meet an investor?
    I spilled tea on my laptop. What now?
    What would be a good excuse if I miss the bus?
    Do I need a visa to visit Japan, in general?
    How can I tell whether my eggs are still fresh?
    Suggest a name for my future sailing boat.
    I wonder why my toast always lands on the buttered side.
    Is it normal that my ears pop in a lift?
    My shoelaces keep coming undone; which knot holds?
    Make my sentence friendlier: "You did not pay."
    I should call a plumber, or can I fix a dripping tap alone?
    Where do I put the apostrophe when I write about the toys of several children?
    Give me an idea what I could draw.
    Can you quiz me on European capitals?
    I hear a humming noise in my kitchen at night. What may cause it?
    What do I say when my colleague wins an award?
    I never know how much to tip. What is usual in France?
    How do I explain to my child where rain comes from?
    Would you read my mind if you could?
    I miss the summer.
    I need cheering up.
    My goodness, what a day!
    I was thinking about time travel. Is it possible?
    How might I turn my balcony into a small garden?
    Am I allowed to take photographs in a museum?
    If I mix blue and yellow, what do I get?
    I cannot decide between tea and juice. Decide for me.
    What would my horoscope say if horoscopes were honest?
    Please greet me as if I had just returned from the moon.
    How long would I need to walk ten kilometres?
    Let me think about it for a moment.
    """
)
