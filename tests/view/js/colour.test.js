import assert from "node:assert/strict";
import { test } from "node:test";

import { heatLevel, peaks } from "../../../opd/view/js/colour.js";

const STEPS = [0.1, 0.25, 0.5, 1, 2, 4];

test("a step of the ramp begins at its number, whatever the sign", () => {
  assert.deepEqual([0, 0.09, 0.1, -0.1, 3.99, 4, 99].map((value) => heatLevel(value, STEPS)), [0, 0, 1, 1, 5, 6, 6]);
  assert.equal(heatLevel(NaN, STEPS), 0);
});

test("of values that share a pixel the largest is drawn", () => {
  assert.deepEqual([...peaks([0, -5, 1, 2, NaN, 1], 3)], [1, 3, 5]);
  assert.deepEqual([...peaks([1, 2], 4)], [0, 0, 1, 1]);
});
