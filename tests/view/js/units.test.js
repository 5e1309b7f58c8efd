import assert from "node:assert/strict";
import { test } from "node:test";

import { occurrences } from "../../../opd/view/js/find.js";
import { combine, unitsOf } from "../../../opd/view/js/units.js";

const textOf = (pieces) => {
  const starts = pieces.reduce((sums, piece) => [...sums, sums.at(-1) + piece.length], [0]);
  return { count: pieces.length, starts, text: pieces.join(""), token: (i) => pieces[i] };
};
const PIECES = ["Six", "ty", " 3", ".", "5", ".", " Yes", "!", "↵\n", "end"];

test("words, sentences and steps", () => {
  const firsts = (unit) => unitsOf(textOf(PIECES), unit).first;
  assert.deepEqual(firsts("token"), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.deepEqual(firsts("word"), [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.deepEqual(firsts("sentence"), [0, 6, 8, 9, 10]);
  assert.deepEqual(firsts("step"), [0, 9, 10]);
});

test("values of a unit add up, average or give their largest, of what is known", () => {
  const units = { count: 2, first: [0, 3, 5] };
  const values = Float32Array.of(1, NaN, 2, NaN, NaN);
  assert.deepEqual([...combine(values, units, "sum")], [3, NaN]);
  assert.deepEqual([...combine(values, units, "mean")], [1.5, NaN]);
  assert.deepEqual([...combine(values, units, "max")], [2, NaN]);
});

test("a text is found across tokens, upper and lower case alike", () => {
  assert.deepEqual(occurrences(textOf(PIECES), "SIXTY"), [{ first: 0, last: 1 }]);
  assert.deepEqual(occurrences(textOf(["İ", "a", "A"]), "a"), [{ first: 1, last: 1 }], "lengths differ: as written");
});
