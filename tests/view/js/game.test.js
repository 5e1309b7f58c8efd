import assert from "node:assert/strict";
import { test } from "node:test";

import { Game } from "../../../opd/view/js/game.js";
import { evenOut, makeQuestion } from "../../../opd/view/js/questions.js";

/** A question with two options, the first of them right; what the student said is `said`. */
function question(said) {
  const options = [{ text: "a", right: true }, { text: "b", right: false }];
  return { options, said: options[said] };
}

function begun(...said) {
  const game = new Game();
  game.go("open");
  game.deal(said.map(question));
  return game;
}

test("a game goes from looking to its end, one answer a question", () => {
  const game = new Game();
  assert.equal(game.question, null);
  game.deal([question(0)]);
  assert.equal(game.state, "closed", "nobody opened it");
  game.go("open");
  assert.equal(game.state, "looking");
  game.deal([question(1), question(0)]);
  assert.equal(game.state, "asking");
  game.next();
  assert.equal(game.at, 0, "an answer first");
  assert.ok(game.choose(0));
  assert.ok(!game.choose(1), "an answer stands");
  assert.equal(game.state, "answered");
  game.next();
  assert.ok(game.isLast && game.chosen === null);
  assert.ok(!game.choose(2), "there is no such option");
  game.choose(1);
  game.next();
  assert.equal(game.state, "over");
  assert.equal(game.question, null);
  assert.deepEqual(game.score, { mine: 1, students: 1, byChance: 1 });
});

test("a streak ends with a wrong answer", () => {
  const game = begun(0, 0, 0);
  const streaks = [0, 0, 1].map((place) => {
    game.choose(place);
    const { streak } = game;
    game.next();
    return streak;
  });
  assert.deepEqual(streaks, [1, 2, 0]);
});

test("where there is nothing to ask the game says so", () => {
  const game = begun();
  assert.equal(game.state, "empty");
  assert.ok(!game.choose(0));
});

const candidate = (text, student, teacher, sampled = false) => ({ id: 1, text, spelling: text, student, teacher, sampled });

test("a question is one where the student strayed, or hesitated and was right", () => {
  const listed = [candidate(" a", 0.5, 0.1, true), candidate(" b", 0.3, 0.8), candidate(" c", 0.2, 0.1)];
  const details = { listed, figures: { student_entropy: 1 } };
  const asked = makeQuestion({ hash: 1 }, details, true);
  assert.deepEqual(asked.options.filter(({ right }) => right).map(({ text }) => text), ["·b"]);
  assert.equal(asked.said.text, "·a");
  assert.equal(makeQuestion({ hash: 1 }, details, false), null, "it did not take the teacher's choice");
  assert.equal(makeQuestion({ hash: 1 }, null, true), null, "candidates are not at hand");
  assert.equal(makeQuestion({ hash: 1 }, { ...details, listed: listed.slice(0, 2) }, true), null, "too few");
});

test("both kinds are as many, but for a few", () => {
  assert.deepEqual(evenOut([1, 2, 3, 4, 5], []).map((kind) => kind.length), [3, 0]);
  assert.deepEqual(evenOut([1, 2, 3, 4, 5], [1, 2, 3, 4]).map((kind) => kind.length), [4, 4]);
});
