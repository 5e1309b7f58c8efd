import assert from "node:assert/strict";
import { test } from "node:test";

import { agreementFrom, agreementWords, answerWords, classify, tally, textWords } from "../../../opd/view/js/verdicts.js";

const NAMES = ["brilliant", "great", "best", "good", "forced", "slip", "inaccuracy", "mistake", "blunder"];
const LIMITS = { blunder: 0.6, mistake: 0.3, inaccuracy: 0.1, slip: 0.001, brilliantGain: 0.3, brilliantStudent: 0.2, forcedEntropy: 0.05 };

/** The verdict of one token. */
function verdict({ drop = 0, blame = drop, student = 0.5, teacher = 0.5, entropy = 1, studentRank = 1, teacherRank = 1 }) {
  const columns = {
    drop: [drop], blame: [blame], student_share: [student], teacher_share: [teacher], student_entropy: [entropy],
    student_rank: [studentRank], teacher_rank: [teacherRank],
  };
  const single = Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, Float32Array.from(values)]));
  return NAMES[classify(single, LIMITS, NAMES)[0]];
}

test("each rule, and a threshold itself is enough", () => {
  assert.equal(verdict({ drop: 0.6, teacherRank: 2 }), "blunder");
  assert.equal(verdict({ drop: 0.3, teacherRank: 2 }), "mistake");
  assert.equal(verdict({ drop: 0.1, teacherRank: 2 }), "inaccuracy");
  assert.equal(verdict({ drop: 0.09, teacherRank: 2 }), "good");
  assert.equal(verdict({ drop: 0.9, blame: 0.05, teacherRank: 2 }), "good");
  assert.equal(verdict({ drop: 0.1, student: 0.0009, teacher: 0, teacherRank: 9 }), "slip");
  assert.equal(verdict({ drop: 0.1, student: 0.001, teacher: 0, teacherRank: 9 }), "inaccuracy");
  assert.equal(verdict({ drop: 0.09, student: 0, teacher: 0, teacherRank: 9 }), "good");
  assert.equal(verdict({ student: 0.1, teacher: 0.4, studentRank: 3 }), "brilliant");
  assert.equal(verdict({ studentRank: 2 }), "great");
  assert.equal(verdict({}), "best");
  assert.equal(verdict({ entropy: 0.01 }), "forced");
});

test("only the student's own tokens count, and an agreement says of how many", () => {
  const verdicts = ["forced", "blunder", "best", "good"].map((name) => NAMES.indexOf(name));
  const text = { verdicts, agreement: Float32Array.of(1, 0, 1, 0.5), ownFrom: 1, ownTo: 4 };
  assert.deepEqual([tally(text, NAMES).forced, tally(text, NAMES).blunder], [0, 1]);
  assert.deepEqual(agreementFrom(text, 0), { share: 0.5, tokens: 3 });
  assert.deepEqual(agreementFrom(text, 2), { share: 0.75, tokens: 2 });
  assert.deepEqual([agreementFrom(text, 4), agreementFrom({ ...text, agreement: null }, 0)], [null, null]);
  const words = (agreement, bound) => agreementWords({ agreement, tokens: 3, bound }).replace("\u00a0", " ");
  assert.deepEqual([words(0.75, false), words(0.75, true), words(null, false)], ["75 % of 3", "≤ 75 % of 3", "–"]);
});

const answer = (correct, more = {}) => ({ correct, finish_reason: "stop", branch: null, ...more });

test("an answer that was not verified is not wrong, and a branch no attempt", () => {
  assert.deepEqual(answerWords([[answer(null)]]), []);
  assert.deepEqual(answerWords([[answer(true), answer(false), answer(null), answer(null, { finish_reason: null })]]), [
    "1 of 2 right", "1 not verified", "1 unfinished",
  ]);
  assert.deepEqual(answerWords([[answer(false)], [answer(true), answer(true, { branch: {} })]]), ["0 → 1 of 1 right"]);
  assert.deepEqual(textWords([answer(true), answer(true, { branch: {} })]), ["1 trajectory", "1 branch"]);
});
