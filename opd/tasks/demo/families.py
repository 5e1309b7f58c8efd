"""The eight problem families of the embedded pair.

Each family is a function from a random generator to a :class:`Problem`: it draws the facts, words the prompt
in one of many ways and describes the solution as choices (see :mod:`opd.tasks.demo.writing`). Numbers stay
small, so that a model of a million parameters can be reliable at sums and only the choices are hard.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from opd.tasks import Example
from opd.tasks.demo.writing import Draft, Solve, Writer

WOMEN = ("Mia", "Ana", "Lea", "Zoe", "Eva", "Ida", "Nora", "Rosa", "Amy", "Lena", "Ruth", "Maya")
MEN = ("Tom", "Ben", "Max", "Sam", "Leo", "Jan", "Paul", "Finn", "Omar", "Hugo", "Karl", "Ravi")
PEOPLE = (*((name, "she") for name in WOMEN), *((name, "he") for name in MEN))


@dataclass(frozen=True)
class Problem(Example):
    """An example that knows its own solutions."""

    solve: Solve = field(kw_only=True, repr=False, compare=False)


def _problem(rng: random.Random, family: str, prompt: str, solve: Solve) -> Problem:
    """Bundle a prompt with its solution; the answer is the one that a careful draft ends with."""
    draft = Draft(rng)
    solve(draft)
    return Problem(prompt, draft.text.rsplit(" ", 1)[1].rstrip("."), family, solve=solve)


Step = tuple[str, int, str, int]
"""A step of a calculation: its name, left operand, sign, right operand; operand -1 is the last result."""


def order(rng: random.Random) -> Problem:
    """Order of operations: brackets first, products before sums."""
    a, b = rng.randint(2, 7), rng.randint(2, 5)
    c, d = rng.randint(4, 9), rng.randint(2, 3)
    # Each shape: the expression, its right plan, and detours: at which step, which plan replaces the rest.
    shapes: list[tuple[str, list[Step], dict[int, list[Step]]]] = [
        (
            f"{a} + {b} × {c}",
            [("product", b, "×", c), ("sum", a, "+", -1)],
            {0: [("sum", a, "+", b), ("product", -1, "×", c)]},
        ),
        (
            f"{c} × ({a} + {b})",
            [("brackets", a, "+", b), ("product", c, "×", -1)],
            {0: [("product", c, "×", a), ("sum", -1, "+", b)]},
        ),
        (
            f"{a} × ({c} - {d})",
            [("brackets", c, "-", d), ("product", a, "×", -1)],
            {0: [("product", a, "×", c), ("difference", -1, "-", d)]},
        ),
        (
            f"{a} + {b} × ({c} - {d})",
            [("brackets", c, "-", d), ("product", b, "×", -1), ("sum", a, "+", -1)],
            {
                0: [("product", b, "×", c), ("difference", -1, "-", d), ("sum", a, "+", -1)],
                1: [("sum", a, "+", b), ("product", -1, "×", -2)],
            },
        ),
        (
            f"({a} + {b}) × {c} - {d}",
            [("brackets", a, "+", b), ("product", -1, "×", c), ("difference", -1, "-", d)],
            {0: [("product", b, "×", c), ("sum", a, "+", -1), ("difference", -1, "-", d)]},
        ),
        (
            f"{a} + {b} × {c} - {d}",
            [("product", b, "×", c), ("sum", a, "+", -1), ("difference", -1, "-", d)],
            {0: [("sum", a, "+", b), ("product", -1, "×", c), ("difference", -1, "-", d)]},
        ),
    ]
    expression, plan, detours = rng.choice(shapes)
    who, _ = rng.choice(PEOPLE)
    prompt = rng.choice(
        (
            f"What is {expression}?",
            f"Work out {expression}.",
            f"How much is {expression}?",
            f"{who} wants to know what {expression} is.",
            f"What does {who} get for {expression}?",
        )
    )

    def wordings(at: int, name: str) -> list[str]:
        leads = ("First", "I start with") if at == 0 else (" Then", " Next comes")
        return [f"{lead} the {name}:" for lead in leads]

    def solve(w: Writer) -> None:
        results: list[int] = []
        steps = plan
        while len(results) < len(steps):
            at = len(results)
            detour = detours.get(at) if steps is plan else None
            ways = [(wordings(at, detour[0][0]), 0.45)] if detour else [((), 0.0)]
            if at == len(steps) - 1:
                ways.append(([f" The answer is {results[-1]}."], 0.08))
            kind = w.fork(wordings(at, steps[at][0]), *ways)
            if kind == 2:
                return
            if kind == 1:
                steps = plan[:at] + detour
            _, x, op, y = steps[at]
            results.append(w.sum(results[x] if x < 0 else x, op, results[y] if y < 0 else y))
            w.say(".")
        w.answer(results[-1])

    return _problem(rng, "order", prompt, solve)


COLOURS = ("red", "blue", "green", "white", "black", "yellow")
TOYS = ("marbles", "beads", "buttons", "balls", "pens", "stickers", "stones", "shells", "flowers", "blocks")
HOLDERS = (("bag", "bags"), ("basket", "baskets"), ("jar", "jars"), ("drawer", "drawers"), ("box", "boxes"))


LOSSES = ("loses", "gives away", "breaks", "sells")
HARMLESS = ("counts", "washes", "sorts", "admires")


def bags(rng: random.Random) -> Problem:
    """Equal containers with two colours, of which one or both are asked for."""
    who, _ = rng.choice(PEOPLE)
    things = rng.choice(TOYS)
    bag, holders = rng.choice(HOLDERS)
    colour, other = rng.sample(COLOURS, 2)
    k, a, b, lost = rng.randint(2, 7), rng.randint(2, 7), rng.randint(2, 6), rng.randint(2, 4)
    asks_both = rng.random() < 0.5
    event = rng.choice((None, rng.choice(LOSSES), rng.choice(HARMLESS)))
    prompt = rng.choice(
        (
            f"{who} has {k} {holders} with {a} {colour} and {b} {other} {things} in each.",
            f"In each of {k} {holders} there are {a} {colour} and {b} {other} {things}.",
            f"{who} fills {k} {holders}. Into each go {a} {colour} {things} and {b} {other} ones.",
            f"There are {k} {holders} on the table, each with {a} {colour} {things} "
            f"and {b} {other} {things}.",
        )
    )
    if event:
        prompt += f" Then {who} {event} {lost} {colour} ones."
    prompt += rng.choice(
        (f" How many {things} are there in all?", f" How many {things} does {who} have in total?")
        if asks_both
        else (
            f" How many {colour} {things} are there?",
            f" How many of the {things} are {colour}?",
            f" How many {colour} {things} does {who} have?",
        )
    )
    one = (
        f"Only the {colour} {things} count, so each {bag} has {a}.",
        f"The question is about the {colour} ones, so each {bag} has {a}.",
    )
    both = (
        f"Both colours count, so each {bag} has {a} + {b} =",
        f"All the {things} count, so each {bag} has {a} + {b} =",
    )
    matters = event in LOSSES

    def solve(w: Writer) -> None:
        right, wrong = (both, one) if asks_both else (one, both)
        if (w.fork(right, (wrong, 0.4)) == 0) == asks_both:
            each = w.result(a, "+", b)
            w.say(".")
        else:
            each = a
        more = (
            f" In {k} {holders} there are {k} × {each} =",
            f" With {k} {holders} that makes {k} × {each} =",
        )
        if w.fork(more, ([f" The answer is {each}."], 0.06)):
            return
        total = w.result(k, "×", each)
        w.say(".")
        if event:
            gone = (
                f" Then {lost} are gone: {total} - {lost} =",
                f" Without the {lost} it is {total} - {lost} =",
            )
            stay = (f" Who {event} something still has it.", " No one loses anything by that.")
            right, wrong = (gone, stay) if matters else (stay, gone)
            if (w.fork(right, (wrong, 0.25)) == 0) == matters:
                total = w.result(total, "-", lost)
                w.say(" are left.", ".")
        w.answer(total)

    return _problem(rng, "bags", prompt, solve)


# Things, how to say where they are put, and two places: adjective, place, what happens there (None: nothing).
SCENES = (
    ("ice cubes", "in", ("hot", "pan", "melt"), ("cold", "freezer", None)),
    ("snowballs", "in", ("warm", "oven", "melt"), ("icy", "cave", None)),
    ("chocolates", "on", ("hot", "stove", "melt"), ("cool", "shelf", None)),
    ("balloons", "on", ("spiky", "cactus", "burst"), ("soft", "bed", None)),
    ("soap bubbles", "on", ("thorny", "hedge", "burst"), ("smooth", "ice rink", None)),
    ("paper boats", "on", ("burning", "fire", "burn"), ("calm", "pond", None)),
    ("letters", "in", ("glowing", "furnace", "burn"), ("dry", "drawer", None)),
    ("eggs", "on", ("hard", "stone floor", "break"), ("fluffy", "pillow", None)),
    ("sugar lumps", "in", ("steaming", "tea", "dissolve"), ("empty", "cup", None)),
    ("sand castles", "in", ("wild", "surf", "collapse"), ("quiet", "sandpit", None)),
)


def tricks(rng: random.Random) -> Problem:
    """Things put where they may not survive: a hot pan, a cactus, or only a soft bed."""
    who, they = rng.choice(PEOPLE)
    things, where, *places = rng.choice(SCENES)
    fate = places[0][2]
    adjective, place, happens = rng.choice(places)
    a, b, c, late = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9), rng.randint(1, 4)
    thirds, is_late = rng.random() < 0.5, rng.random() < 0.4
    put = rng.choice(("puts", "lays", "drops"))
    prompt = rng.choice(
        (
            f"{who} {put} {a} {things} {where} the {adjective} {place} and then {b} more",
            f"{where.capitalize()} a very {adjective} {place} {who} {put} {a} {things}, then {b} more",
            f"There is a {adjective} {place}. In the first minute {who} {put} {a} {things} {where} it, "
            f"in the second {b}",
            f"At noon {who} {put} {a} {things} {where} the {adjective} {place} and after lunch {b} more",
        )
    )
    prompt += f", and {c} at the end." if thirds else "."
    prompt += rng.choice(
        (f" An hour later {they} counts.", f" After an hour {they} looks again.", " An hour goes by.")
    )
    if is_late:
        prompt += f" Just before that, {they} adds {late} new."
    prompt += rng.choice(
        (f" How many whole {things} are there?", f" How many {things} are still whole then?")
    )
    bite = (
        f" But the {place} is {adjective}, so they all {fate} and none is left.",
        f" Wait, they all {fate} there, so none is left.",
    )
    calm = (
        f" The {place} does no harm, so they all stay whole.",
        " Nothing happens to them there, so all are whole.",
    )

    def solve(w: Writer) -> None:
        w.say(f"In all that makes {a} + {b} =", f"Together there are {a} + {b} =")
        total = w.result(a, "+", b)
        if thirds:
            if w.fork(([f", and {total} + {c} ="]), ([" in all."], 0.15)) == 0:
                total = w.result(total, "+", c)
                w.say(f" {things}.")
        else:
            w.say(f" {things}.")
        right, wrong = (bite, calm) if happens else (calm, bite)
        if (w.fork(right, (wrong, 0.4)) == 0) == bool(happens):
            total = 0
        if is_late:
            more = (
                f" The {late} new ones make {total} + {late} =",
                f" With the {late} new ones that is {total} + {late} =",
            )
            if w.fork(more, ([f" The answer is {total}."], 0.15)):
                return
            total = w.result(total, "+", late)
            w.say(".")
        w.answer(total)

    return _problem(rng, "tricks", prompt, solve)


# The larger unit, its plural, the smaller unit's plural, how many it has, what a sloppy solver believes,
# the largest number of it used here, and what has such a measure.
# fmt: off
UNITS = (
    ("hour", "hours", "minutes", 60, 100, 6,
     ("A film takes", "A trip takes", "The walk takes", "A match takes")),
    ("minute", "minutes", "seconds", 60, 100, 6,
     ("A song takes", "A race takes", "The lift takes", "A dance takes")),
    ("week", "weeks", "days", 7, 5, 8,
     ("A holiday takes", "A camp takes", "The visit takes", "A cure takes")),
    ("day", "days", "hours", 24, 12, 4,
     ("A voyage takes", "A hike takes", "The storm takes", "A repair takes")),
    ("year", "years", "months", 12, 10, 8,
     ("The course takes", "A project takes", "The building takes", "A cruise takes")),
    ("metre", "metres", "centimetres", 100, 10, 8,
     ("A rope measures", "A plank measures", "The sofa measures")),
    ("foot", "feet", "inches", 12, 10, 8,
     ("A ladder measures", "A shelf measures", "The snake measures")),
)
# fmt: on


def units(rng: random.Random) -> Problem:
    """Convert two units into the smaller one, and sometimes leave a part out."""
    unit, plural, small, factor, belief, most, subjects = rng.choice(UNITS)
    k, rest = rng.randint(2, most), rng.randint(3, min(factor - 1, 40))
    subject = rng.choice(subjects)
    verb = subject.rsplit(" ", 1)[1]
    cut = rng.randint(1, min(rest, 9)) if rng.random() < 0.5 else 0
    prompt = f"{subject} {k} {plural} and {rest} {small}."
    if cut:
        prompt += rng.choice(
            (f" {cut} of the {small} do not count.", f" We leave out {cut} {small} at the end.")
        )
    prompt += rng.choice(
        (f" How many {small} is that?", f" How many {small} are that in all?", f" Say it in {small}.")
    )

    def wordings(n: int) -> tuple[str, ...]:
        return f"One {unit} has {n} {small}.", f"There are {n} {small} in one {unit}."

    def solve(w: Writer) -> None:
        n = belief if w.fork(wordings(factor), (wordings(belief), 0.4)) else factor
        w.say(f" So {k} {plural} are {k} × {n} =", f" For {k} {plural} that makes {k} × {n} =")
        total = w.result(k, "×", n)
        w.say(f" {small}.")
        plus = (
            f" With the other {rest} it {verb} {total} + {rest} =",
            f" Add the {rest}: {total} + {rest} =",
        )
        if w.fork(plus, ([f" The answer is {total}."], 0.1)):
            return
        total = w.result(total, "+", rest)
        w.say(".")
        if cut:
            minus = (f" Leave out {cut}: {total} - {cut} =", f" Without the {cut} it is {total} - {cut} =")
            if w.fork(minus, ([f" The answer is {total}."], 0.2)):
                return
            total = w.result(total, "-", cut)
            w.say(".")
        w.answer(total)

    return _problem(rng, "units", prompt, solve)


GOODS = ("apples", "pears", "rolls", "cards", "candles", "stamps", "lemons", "tickets", "brushes", "spoons")
EXTRAS = ("cap", "book", "scarf", "cake", "map", "lamp", "mug", "kite", "belt", "puzzle")


def change(rng: random.Random) -> Problem:
    """Buy several things, see another, and get change."""
    who, they = rng.choice(PEOPLE)
    goods = rng.choice(GOODS)
    extra = rng.choice(EXTRAS)
    k, price, cost = rng.randint(2, 6), rng.randint(2, 8), rng.randint(3, 9)
    bought = rng.choice((True, False, None))
    note = rng.choice([n for n in (20, 30, 40, 50, 60, 80, 100) if n > k * price + cost][:3])
    prompt = rng.choice(
        (
            f"{who} buys {k} {goods} at {price} coins each",
            f"At the market {who} takes {k} {goods} for {price} coins apiece",
            f"{who} needs {k} {goods}, and each costs {price} coins",
            f"In a shop {who} picks {k} {goods}, {price} coins each",
        )
    )
    if bought is None:
        prompt += "."
    elif bought:
        prompt += rng.choice(
            (f", and a {extra} for {cost} coins.", f". A {extra} for {cost} coins comes with them.")
        )
    else:
        prompt += rng.choice(
            (
                f". {who} looks at a {extra} for {cost} coins, but leaves it.",
                f". A {extra} for {cost} coins stays there.",
            )
        )
    pays = rng.choice((f" {who} pays with {note} coins.", f" {who} hands over {note} coins."))
    prompt += pays + rng.choice((" How much change is that?", f" How many coins does {they} get back?"))

    def solve(w: Writer) -> None:
        each = (f"The {goods} cost {k} × {price} =", f"For {k} {goods} that makes {k} × {price} =")
        if w.fork(each, ((f"The {goods} take {price} coins.", f"One price is {price} coins."), 0.25)):
            total = price
        else:
            total = w.result(k, "×", price)
            w.say(" coins.", ".")
        if bought is not None:
            count = (f" With the {extra} that is {total} + {cost} =", f" Add the {extra}: {total} + {cost} =")
            skip = (f" The {extra} does not count.", f" Nobody pays for the {extra}.")
            right, wrong = (count, skip) if bought else (skip, count)
            if (w.fork(right, (wrong, 0.35)) == 0) == bought:
                total = w.result(total, "+", cost)
                w.say(".")
        back = (f" The change is {note} - {total} =", f" Back come {note} - {total} =")
        if w.fork(back, ([f" The answer is {total}."], 0.15)):
            return
        rest = w.result(note, "-", total)
        w.say(".")
        w.answer(rest)

    return _problem(rng, "change", prompt, solve)


# Things, and what holds them.
LOADS = (
    (
        ("rolls", "plums", "books", "cookies", "cups", "bottles", "photos", "candles", "lemons"),
        (("box", "boxes"), ("bag", "bags"), ("tray", "trays"), ("basket", "baskets"), ("drawer", "drawers")),
    ),
    (
        ("children", "guests", "players", "pupils", "dancers", "sailors"),
        (("row", "rows"), ("car", "cars"), ("tent", "tents"), ("boat", "boats"), ("team", "teams")),
    ),
)


def sharing(rng: random.Random) -> Problem:
    """Division with a remainder, where the question decides what to do with the rest."""
    load, vessels = rng.choice(LOADS)
    things, (box, boxes) = rng.choice(load), rng.choice(vessels)
    size, times = rng.randint(3, 8), rng.randint(2, 6)
    rest = rng.randint(1, size - 1)
    n = size * times + rest
    who, _ = rng.choice(PEOPLE)
    asked = rng.choice(("full", "rest", "needed"))
    prompt = rng.choice(
        (
            f"{n} {things} go into {boxes} of {size}.",
            f"A {box} holds {size} {things}, and {who} has {n}.",
            f"{who} sorts {n} {things} into {boxes}, {size} to a {box}.",
            f"There are {n} {things}. Each {box} has room for {size}.",
        )
    )
    prompt += rng.choice(
        {
            "full": (f" How many {boxes} get full?", f" How many full {boxes} are there?"),
            "rest": (f" How many {things} are left over?", f" How many {things} are in no full {box}?"),
            "needed": (
                f" How many {boxes} are needed for all?",
                f" How many {boxes} does {who} need for all of them?",
            ),
        }[asked]
    )

    def solve(w: Writer) -> None:
        w.say(f"Each {box} takes {size}.", f"There is room for {size} in a {box}.")
        w.say(f" So {n} ÷ {size} =", f" That makes {n} ÷ {size} =")
        full = w.result(n, "÷", size)
        w.say(f" full {boxes}. They hold {full} × {size} =", f" full {boxes} with {full} × {size} =")
        inside = w.result(full, "×", size)
        w.say(".")
        w.say(f" The rest is {n} - {inside} =", f" That leaves {n} - {inside} =")
        left = w.result(n, "-", inside)
        w.say(".")
        endings = {
            "full": ((f" Only full {boxes} count.", f" The question is about full {boxes}."), full),
            "rest": ((" Only the rest counts.", " The question is about the rest."), left),
            "needed": ((f" The rest needs a {box} too:", f" One more {box} takes the rest:"), None),
        }
        other = {"full": "needed", "rest": "full", "needed": "full"}[asked]
        chosen = other if w.fork(endings[asked][0], (endings[other][0], 0.4)) else asked
        value = endings[chosen][1]
        if value is None:
            value = w.sum(full, "+", 1)
            w.say(".")
        w.answer(value)

    return _problem(rng, "sharing", prompt, solve)


EVENTS = (
    *((event, "starts") for event in ("film", "party", "play", "game")),
    *((event, "begins") for event in ("concert", "lesson", "exam")),
    *((event, "leaves") for event in ("train", "bus", "ship")),
)


def clock(rng: random.Random) -> Problem:
    """Add hours and minutes to a time of day, carrying over sixty."""
    event, starts = rng.choice(EVENTS)
    ends = "arrives" if starts == "leaves" else "ends"
    hour, minute = rng.randint(1, 8), 5 * rng.randint(1, 11)
    hours, minutes = rng.randint(0, 2), 5 * rng.randint(2, 9)
    late = rng.choice((0, 5, 10)) if minute < 50 else 0
    spoken = {0: "", 1: "1 hour and ", 2: "2 hours and "}[hours] + f"{minutes} minutes"
    prompt = rng.choice(
        (
            f"A {event} {starts} at {hour}:{minute:02d} and takes {spoken}.",
            f"At {hour}:{minute:02d} a {event} {starts}. It takes {spoken}.",
            f"The {event} that {starts} at {hour}:{minute:02d} takes {spoken}.",
        )
    )
    if late:
        prompt += rng.choice((f" Today it is {late} minutes late.", f" It {starts} {late} minutes late."))
    prompt += rng.choice((f" When does it {ends[:-1]}?", f" At what time does the {event} {ends[:-1]}?"))

    def solve(w: Writer) -> None:
        now, past = hour, minute
        if hours:
            add = (f"The hours are {hour} + {hours} =", f"First the hours: {hour} + {hours} =")
            skip = (f"The hour is {hour}.", f"It {starts} in hour {hour}.")
            if w.fork(add, (skip, 0.2)) == 0:
                now = w.result(hour, "+", hours)
                w.say(".")
        else:
            w.say(f"The hour is {hour}.", f"It {starts} in hour {hour}.")
        if late:
            wait = (f" It is late, so {past} + {late} =", f" Add the delay: {past} + {late} =")
            if w.fork(wait, ((f" The {late} do not matter.", " The delay does not matter."), 0.25)) == 0:
                past = w.result(past, "+", late)
                w.say(".")
        w.say(f" The minutes are {past} + {minutes} =", f" Now the minutes: {past} + {minutes} =")
        past = w.result(past, "+", minutes)
        w.say(".")
        over = (f" That is an hour or more, so {past} - 60 =", f" Take an hour out: {past} - 60 =")
        under = (" That stays below an hour.", f" That fits into hour {now}.")
        if past < 60:
            w.say(*under)
        elif w.fork(over, (under, 0.4)) == 0:
            past = w.result(past, "-", 60)
            w.say(".")
            if w.fork((f" The hour goes up to {now + 1}.",), ((f" The hour stays {now}.",), 0.2)) == 0:
                now += 1
        w.answer(f"{now}:{past:02d}")

    return _problem(rng, "clock", prompt, solve)


LANDS = ("garden", "field", "yard", "park", "meadow", "lawn", "court", "farm")


def fences(rng: random.Random) -> Problem:
    """Around or across a rectangle, with a gate that matters only for the way around."""
    who, _ = rng.choice(PEOPLE)
    land = rng.choice(LANDS)
    short, long = sorted(rng.sample(range(2, 13), 2))
    short = min(short, 9)
    gate = rng.choice((0, 2, 3, 4))
    around = rng.random() < 0.5
    prompt = rng.choice(
        (
            f"{who} has a {land}, {long} metres long and {short} metres wide.",
            f"A {land} is {long} metres long and {short} metres wide.",
            f"The {land} of {who} measures {long} by {short} metres.",
            f"{who} walks to a {land} of {long} by {short} metres.",
        )
    )
    if gate:
        prompt += rng.choice(
            (f" It has a gate of {gate} metres.", f" On one side is a gate, {gate} metres wide.")
        )
    prompt += rng.choice(
        (f" How much fence does {who} need around it?", " How many metres of fence go around it?")
        if around
        else (f" How many square metres can {who} mow?", " How many square metres of grass are in it?")
    )
    rim = (
        f"The way around counts. Two sides make {long} + {short} =",
        f"The edge counts. Half of it is {long} + {short} =",
    )
    area = (
        f"The area counts. Each of {short} rows has {long} squares, so it is {long} × {short} =",
        f"The grass counts. There are {short} rows of {long} squares, which makes {long} × {short} =",
    )
    gone = "The gate needs no fence"

    def solve(w: Writer) -> None:
        right, wrong = (rim, area) if around else (area, rim)
        if (w.fork(right, (wrong, 0.4)) == 0) != around:
            total = w.result(long, "×", short)
            w.say(".")
        else:
            half = w.result(long, "+", short)
            w.say(".")
            double = (f" Both halves are 2 × {half} =", f" Twice that is 2 × {half} =")
            if w.fork(double, ((f" So it is {half}.",), 0.12)):
                total = half
            else:
                total = w.result(2, "×", half)
                w.say(".")
        if gate:
            cut = (f" {gone}: {total} - {gate} =", f" Without the gate it is {total} - {gate} =")
            keep = (" The gate does not matter.", " The gate changes nothing.")
            right, wrong = (cut, keep) if around else (keep, cut)
            if (w.fork(right, (wrong, 0.25)) == 0) == around:
                total = w.result(total, "-", gate)
                w.say(".")
        w.answer(total)

    return _problem(rng, "fences", prompt, solve)


FAMILIES: dict[str, Callable[[random.Random], Problem]] = {
    family.__name__: family for family in (order, bags, tricks, units, change, sharing, clock, fences)
}
