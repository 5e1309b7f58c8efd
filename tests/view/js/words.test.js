import assert from "node:assert/strict";
import { test } from "node:test";

import { counted, figure, label, number, percent, plural, shareWords, shortened, signed, spoken } from "../../../opd/view/js/words.js";

test("a minus is a minus sign, and nothing is minus zero", () => {
  assert.equal(number(-1.234), "−1.23");
  assert.equal(number(-0.001), "0.00");
  assert.equal(signed(0.5), "+0.50");
  assert.equal(signed(-0.5), "−0.50");
});

test("a share says 0 or 100 only where it is that", () => {
  const said = [0, 1e-5, 0.034, 0.5, 0.996, 0.9996, 1].map((share) => percent(share).replace("\u00a0", " "));
  assert.deepEqual(said, ["0 %", "<0.1 %", "3.4 %", "50 %", "99.6 %", ">99.9 %", "100 %"]);
});

test("what is missing is a dash", () => {
  for (const missing of [null, undefined, NaN, Infinity]) {
    assert.equal(figure(missing), "–");
    assert.equal(shareWords(missing), "–");
  }
  assert.equal(figure(0, 0), "0");
});

test("nouns have plurals", () => {
  assert.deepEqual(["fork", "trajectory", "branch"].map((noun) => plural(2, noun)), ["forks", "trajectories", "branches"]);
  assert.equal(counted(1, "branch"), "1 branch");
  assert.equal(counted(1234, "token"), "1,234 tokens");
});

test("a token is a label on one line", () => {
  assert.equal(label(" a↵\n"), "·a↵");
  assert.equal(label(""), "∅");
  assert.equal(label("abcdef", 3), "abc…");
  assert.equal(spoken(label(" a b")), "a b");
});

test("a text is never cut within a character", () => {
  assert.equal(shortened("ab😀c", 3), "ab…");
  assert.equal(shortened("ab😀", 4), "ab😀");
});
