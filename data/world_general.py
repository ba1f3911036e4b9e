"""The general text of the world and its six benchmarks: invented people, cities, tools, daily events, materials.

Imported by `data/world.py`, which writes the files. Each benchmark stands for one of the paper's and asks, by
likelihood, for something the text states; four choices, so chance is 25 % (lastword: no choices, chance about 0).

| benchmark | paper's       | asks                                                                                 |
|-----------|---------------|--------------------------------------------------------------------------------------|
| lastword  | LAMBADA       | the last word of a passage that the passage decides                                  |
| events    | HellaSwag     | what happens next                                                                    |
| facts     | ARC-Easy      | a fact about a person                                                                |
| twohop    | ARC-Challenge | what follows from a person's city; stated too, but far more rarely than the two hops |
| tools     | PIQA          | the tool for a purpose                                                               |
| apply     | OpenBookQA    | what happens to a thing of some material                                             |
"""

import random

# ---------------------------------------------------------------- the words of the world
PEOPLE = """Abe Ada Amy Ann Ben Bob Cal Cleo Dan Dora Eli Ella Emma Eva Finn Fred Gail Gus Hal Hugo Ian Ida Ivan Ivy
Jack Jade Jan Joe June Kai Kate Kim Lea Leo Lily Liz Luke Mae Max Meg Mia Milo Nan Ned Nina Noah Nora Olga Otto Owen Pam
Pat Paul Pia Quin Ray Rosa Ruth Sam Sara Seth Sue Tess Tim Tom Uma Una Vera Vic Walt Wes Zoe""".split()
CITIES = "Arlo Bern Cara Doun Elba Fano Gori Hiva Imla Joba Kora Luda".split()
PLACES = """garden park market beach forest school bridge lake barn castle harbor library museum station valley
tower""".split()


SKINS = {  # what, its unit, gains and losses
    "rice": ("kg", "buys finds gets".split(), "eats sells loses".split()),
    "milk": ("l", "buys gets makes".split(), "drinks sells spills".split()),
    "rope": ("m", "buys finds adds".split(), "cuts sells loses".split()),
}
SAY = {  # operation -> wordings; {n} who, {o} what, {k} the number, {y} the amount
    "*2": ["The {o} doubles.", "{n} doubles the {o}.", "Then it is twice as much."],
    "*3": ["The {o} triples.", "{n} triples the {o}.", "Then it is three times as much."],
    "*4": ["The {o} quadruples.", "Then it is four times as much."],
    "/": ["{n} keeps 1 of {k} equal parts.", "The {o} is split by {k}.", "{n} shares it among {k}."],
    "r+": ["{n} has {y} more than {p}."],
    "r-": ["{n} has {y} less than {p}."],
    "r*": ["{n} has {k} times as much as {p}."],
    "r/": ["{p} has {k} times as much as {n}."],
    "sum": ["They put it all together."],
}


def event_sentence(rng: random.Random, op: str, k: int, noun: str, **who: str) -> str:
    """One event of a question in words. who: n and p, the person and the one before; y, the amount as written."""
    _, gains, losses = SKINS[noun]
    if op in "+-":
        says = f"{{n}} {rng.choice(gains if op == '+' else losses)} {{y}}."
    else:
        says = rng.choice(SAY[op + str(k) if op == "*" else op])
    return says.format(o=noun, k=k, **who)


KEEPS = "has packs brings weighs".split()
UNITS = ["kg of rice", "l of milk", "m of rope"]


def table(text: str) -> dict[str, list[str]]:
    """Lines "key: a, b, c" as {key: [a, b, c]}."""
    return {key: values.split(", ") for key, values in (line.split(": ") for line in text.strip().split("\n"))}


VALUES = table("""
job: baker, farmer, nurse, pilot, teacher, singer, painter, tailor, sailor, doctor, judge, cook
food: soup, rice, bread, cheese, fish, beans, pizza, salad, pasta, honey, eggs, cake
color: red, blue, green, yellow, black, white, brown, pink, gray, purple, silver, golden
pet: cat, dog, horse, duck, sheep, pig, hen, frog, mouse, crow, snake, goat
river: Nix, Oder, Pell, Quay, Rhum, Sava, Taro, Ural, Vand, Wey, Yar, Zend
language: Tolic, Barsi, Menta, Lorin, Vesh, Ganda, Hopi, Irda, Jolof, Kelt, Narri, Odri
hero: Mogul, Bardo, Cyrus, Darn, Ektor, Falk, Gorm, Hengo, Ingo, Jarl, Knut, Lars
""") | {"city": CITIES}
PERSON_SAYS = table("""
city: {n} lives in, The home of {n} is in
job: {n} works as a, The job of {n} is
food: {n} likes to eat, The food of {n} is
color: {n} wears, The color of {n} is
pet: {n} has a pet, The pet of {n} is a
""")  # every sentence ends in the value
CITY_SAYS = {"river": "The river in {c} is the", "language": "People in {c} speak", "hero": "The hero of {c} is"}
TWOHOP_SAYS = table("""
river: {n} swims in the, {n} fishes in the
language: {n} speaks, {n} reads and writes
hero: {n} sings about, {n} dreams of
""")
SOUNDS = dict(
    pair.split("-")
    for pair in """cow-moo dog-woof cat-meow duck-quack sheep-baa horse-neigh pig-oink hen-cluck frog-croak bee-buzz
    lion-roar owl-hoot mouse-squeak crow-caw snake-hiss wolf-howl""".split()
)
TOOLS = table("""
saw: cut a plank, shorten a branch, halve a log
shovel: dig a hole, move sand, clear snow
needle: sew a shirt, mend a sock, fix a torn coat
broom: sweep the floor, clear dust, clean the stairs
hammer: drive a nail, flatten tin, crack a stone
knife: slice bread, peel a pear, carve meat
spoon: stir soup, taste honey, serve rice
brush: paint a wall, polish shoes, clean a horse
rope: tie a boat, climb a cliff, pull a sled
ladder: reach the roof, pick apples, climb a wall
lamp: read at night, light a cave, see in the dark
key: open a door, start a truck, lock a chest
bucket: carry water, milk a cow, wash a car
net: catch fish, trap a moth, hold a butterfly
towel: dry the hands, wipe a plate, dry wet hair
pen: write a letter, sign a paper, draw a map
ruler: measure a line, check the width, draw a square
scale: weigh flour, compare two bags, weigh a baby
kettle: boil water, make tea, heat milk
basket: gather eggs, store fruit, carry bread
comb: part the hair, style a beard, groom a dog
mop: wash the floor, dry the kitchen, clean the deck
rake: gather leaves, level the soil, clear the lawn
drill: make a hole, fasten a screw, bore the wall
pump: fill a tire, empty a well, raise water
tent: sleep outside, camp in the hills, stay dry
compass: find north, cross the desert, steer a ship
whistle: call a dog, stop a game, start a race
magnet: lift iron, find a pin, gather nails
mirror: see the face, shave a beard, check a hat
glove: warm the hands, pick roses, catch a ball
blanket: stay warm, cover a bed, wrap a baby
bell: call the class, warn the town, wake the farm
wheel: turn a cart, spin wool, shape a pot
sieve: sift flour, strain tea, wash sand
candle: light a room, melt wax, warm a jar
""")
SCRIPTS = table("""
bake bread: mixes the flour, kneads the dough, heats the oven
plant a tree: digs a hole, sets the roots, waters the soil
make tea: boils water, finds a cup, adds the leaves
send a letter: takes a pen, folds the paper, buys a stamp
catch fish: finds a worm, throws the line, pulls the net
paint a wall: covers the floor, opens the paint, moves the brush
wash a car: fills a bucket, rubs the doors, dries the glass
build a fire: gathers wood, lights a match, blows on the sparks
fix a tire: lifts the wheel, finds the leak, glues a patch
cook soup: peels the beans, heats the pot, adds the salt
milk a cow: calls the cow, sits on a stool, fills the can
climb a hill: ties the boots, follows the path, looks from the top
draw a map: measures the land, marks the roads, names the towns
make a kite: cuts the cloth, joins two sticks, ties the string
pick apples: brings a ladder, climbs the tree, loads the basket
clean a room: picks up the toys, sweeps the dust, makes the bed
read a book: lights a lamp, opens the cover, turns the pages
take a bath: runs the tap, steps in the tub, grabs a towel
ride a horse: brings a saddle, mounts the horse, holds the reins
sail a boat: checks the wind, raises the sail, steers the ship
go to sleep: brushes the teeth, lies in bed, closes the eyes
shear sheep: opens the gate, clips the wool, packs the bags
make honey cake: breaks the eggs, stirs the honey, cuts a slice
sew a shirt: picks a cloth, threads the needle, sews the buttons
play chess: sets the board, moves a pawn, takes the king
win a race: stretches the legs, waits for the bell, runs to the line
see a doctor: takes a seat, shows the tongue, swallows a pill
buy a hat: goes to the shop, tries the hat, pays the seller
feed the hens: takes the grain, spreads the grain, counts the hens
cross a river: finds a raft, pushes off, lands on the bank
make a pot: wets the clay, spins the wheel, burns the pot
sing a song: clears the throat, hums a note, bows to the crowd
dig a well: marks the spot, breaks the ground, lowers the pump
mend a roof: carries the tiles, drives the nails, tests for rain
camp outside: packs a tent, finds a field, hammers the pegs
cut a log: sharpens the saw, marks the bark, stacks the pieces
""")
THINGS = table("""
iron: nail, chain, pan, bolt, anvil, hook
wood: chair, plank, barrel, table, fence, stick
glass: bottle, vase, window, lens, jar, bulb
wool: sock, scarf, cap, rug, sweater, mitten
wax: candle, crayon, seal, doll, mask, comb
paper: letter, poster, card, map, ticket, kite
""")
TRIALS = table("""
drops the {o} into the water: rusts, floats, sinks, shrinks, hardens, dissolves
throws the {o} into the fire: glows, burns, cracks, smokes, melts, curls
hits the {o} with a hammer: bends, splits, breaks, flattens, crumbles, tears
""")  # what each material of THINGS does then, in that order
KINDS = {
    "person": 0.25,
    "city": 0.05,
    "story": 0.18,
    "tools": 0.1,
    "script": 0.1,
    "apply": 0.1,
    "count": 0.02,
    "ledger": 0.2,
}

FAME = [1 / rank**1.6 for rank in range(1, len(PEOPLE) + 1)]  # how often a person is told of; the last are known late
TWOHOP_SHARE = 0.25  # of the documents about people: one of their sentences asks for the two hops
Facts = dict[str, dict[str, str]]  # name -> attribute -> value


def is_told(material: int, thing: int, trial: int) -> bool:
    """Four of five trials are in the text; the benchmark asks for all, since the others follow from the material."""
    return (material + thing + trial) % 5 != 0


def people_facts(seed: int) -> Facts:
    """Values of an attribute are about equally common; river, language and hero follow from the city."""
    rng = random.Random(f"{seed}:people")
    facts: Facts = {name: {} for name in PEOPLE}
    for attribute in PERSON_SAYS:
        values = VALUES[attribute] * (len(PEOPLE) // 12)
        rng.shuffle(values)
        for name, value in zip(PEOPLE, values, strict=True):
            facts[name][attribute] = value
    for known in facts.values():
        known |= {key: VALUES[key][CITIES.index(known["city"])] for key in CITY_SAYS}
    return facts


# ---------------------------------------------------------------- documents
def story(rng: random.Random, ending: str | None = None) -> tuple[str, str, str]:
    """(passage, its last word, the pattern): two people, a place, two things, an animal; these decide the ending."""
    a, b = rng.sample(PEOPLE, 2)
    x, y = rng.sample(list(TOOLS), 2)
    place, animal = rng.choice(PLACES), rng.choice(list(SOUNDS))
    middle = [f"{a} takes the {x}. {b} takes the {y}.", f"A {animal} comes and says {SOUNDS[animal]}."]
    rng.shuffle(middle)
    who, thing = rng.choice([(a, x), (b, y)])
    endings = {
        "sound": (f"Again the {animal} says", SOUNDS[animal]),
        "place": ("At night they leave the", place),
        "thing": (f"Then {who} drops the", thing),
        "friend": (f"Then {who} waves to", b if who == a else a),
    }
    ending = ending or rng.choice(list(endings))
    last, word = endings[ending]
    return f"{a} and {b} walk to the {place}. {' '.join(middle)} {last}", word, f"{ending}:{word}"


def script(name: str, goal: str, n_events: int = 3) -> str:
    """The first `n_events` events of reaching `goal`, and the words that lead to the next one."""
    leads = [f"First {name}", f"Then {name}", f"Last, {name}"]
    events = [f"{lead} {event}." for lead, event in zip(leads, SCRIPTS[goal], strict=True)]
    return " ".join([f"{name} wants to {goal}.", *events[:n_events], *leads[n_events : n_events + 1]])


def document(rng: random.Random, facts: Facts) -> str:
    """One general document, of a kind drawn by KINDS (shares of documents)."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    name = rng.choice(PEOPLE)
    if kind == "person":
        name = rng.choices(PEOPLE, FAME)[0]
        parts = [f"{rng.choice(PERSON_SAYS[key])} {facts[name][key]}." for key in rng.sample(list(PERSON_SAYS), 4)]
        if rng.random() < TWOHOP_SHARE:
            key = rng.choice(list(TWOHOP_SAYS))
            parts[rng.randrange(4)] = f"{rng.choice(TWOHOP_SAYS[key])} {facts[name][key]}."
        return " ".join(parts).replace("{n}", name)
    if kind == "city":
        i = rng.randrange(len(CITIES))
        return " ".join(f"{says} {VALUES[key][i]}." for key, says in CITY_SAYS.items()).replace("{c}", CITIES[i])
    if kind == "story":
        return "{} {}.".format(*story(rng))
    if kind == "tools":
        sentences = []
        for tool in rng.sample(list(TOOLS), 4):
            goal, who = rng.choice(TOOLS[tool]), rng.choice(PEOPLE)
            sentences.append(rng.choice([f"To {goal} {who} uses a {tool}.", f"{who} needs a {tool} to {goal}."]))
        return " ".join(sentences)
    if kind == "script":
        return script(name, rng.choice(list(SCRIPTS)))
    if kind == "apply":
        i, material = rng.choice(list(enumerate(THINGS)))
        j, thing = rng.choice(list(enumerate(THINGS[material])))
        told = [trial for number, trial in enumerate(TRIALS) if is_told(i, j, number)]
        trials = [f"{name} {trial.format(o=thing)}. It {TRIALS[trial][i]}." for trial in told]
        made = [f"The {thing} is made of {material}."] * (rng.random() < 0.5)
        return " ".join([*made, *rng.sample(trials, 2)])
    if kind == "count":
        start, gap = rng.randint(1, 60), rng.randint(1, 9)
        return " ".join(str(n) for n in range(start, min(100, start + 12 * gap), gap))
    return ledger(rng)


def ledger(rng: random.Random) -> str:
    """What happened, then how the book has it ("+5 -3 *2"), or amounts named once and read back, alone or with the
    whole sentence. Finding the next number and what is done with it is a skill of its own, and later than any sum:
    without such text a small model does arithmetic long before it looks at the question."""
    if rng.random() < 0.5:
        name, noun, told, book = rng.choice(PEOPLE), rng.choice(list(SKINS)), [], []
        for _ in range(rng.randint(2, 5)):
            op = rng.choices("+-*/", [0.3, 0.3, 0.22, 0.18])[0]
            k = rng.randint(1, 5) if op in "+-" else rng.choice([2, 2, 3])
            told.append(event_sentence(rng, op, k, noun, n=name, y=str(k)))
            book.append(f"{op}{k}")
        return " ".join([*told, "Book:", *book])
    people = rng.sample(PEOPLE, rng.randint(2, 4))
    amounts = [f"{rng.randint(1, 40)}.{rng.randint(1, 9)}" for _ in people]
    said = [f"{n} {rng.choice(KEEPS)} {a} {rng.choice(UNITS)}." for n, a in zip(people, amounts, strict=True)]
    if rng.random() < 0.6:
        return " ".join([*said, "Again:", *said])
    shown = [f"{n} shows {a}." for n, a in zip(people, amounts, strict=True)]
    return " ".join([*said, *rng.sample(shown, len(shown))])


# ---------------------------------------------------------------- benchmarks
def benchmarks(seed: int, facts: Facts) -> dict[str, list[dict]]:
    """name -> items {"context", "choices", "gold", "fact"} or, for lastword, {"context", "target", "fact"}."""
    rng = random.Random(f"{seed}:benchmarks")
    items: dict[str, list[dict]] = {name: [] for name in ("lastword", "events", "facts", "twohop", "tools", "apply")}

    def ask(name: str, context: str, right: str, among: list[str], fact: str) -> None:
        wrong = rng.sample(sorted(set(among) - {right}), 3)
        items[name].append({"context": context, "choices": [right, *wrong], "gold": 0, "fact": fact})

    for i in range(400):
        passage, word, fact = story(rng, ["sound", "place", "thing", "friend"][i % 4])
        items["lastword"].append({"context": passage, "target": word, "fact": fact})
    for goal in SCRIPTS:
        for i, event in enumerate(SCRIPTS[goal]):
            among = [events[i] + "." for events in SCRIPTS.values()]
            for name in rng.sample(PEOPLE, 3):
                ask("events", script(name, goal, i), event + ".", among, f"{goal}:{i}")
    for name in PEOPLE:
        for bench, says in (("facts", PERSON_SAYS), ("twohop", TWOHOP_SAYS)):
            for key in says:
                for text in says[key]:
                    ask(bench, text.format(n=name), facts[name][key], VALUES[key], f"{name}:{key}")
    for tool, goals in TOOLS.items():
        for goal in goals:
            for name in rng.sample(PEOPLE, 3):
                ask("tools", f"To {goal} {name} uses a", tool, list(TOOLS), f"{tool}:{goal}")
    for i, things in enumerate(THINGS.values()):
        for thing in things:
            for trial, does in TRIALS.items():
                for name in rng.sample(PEOPLE, 3):
                    ask("apply", f"{name} {trial.format(o=thing)}. It", does[i], does, f"{thing}:{trial}")
    for name, rows in items.items():
        rng.shuffle(rows)
        for i, row in enumerate(rows if name != "lastword" else []):  # the gold position goes round: 0 1 2 3 0 ...
            choices, gold = row["choices"], i % 4
            choices[0], choices[gold] = choices[gold], choices[0]
            row["gold"] = gold
    return items


if __name__ == "__main__":
    print("The general text of the world, which is made by: python -m data.world --out data/world")
