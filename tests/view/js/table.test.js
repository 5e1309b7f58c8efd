import assert from "node:assert/strict";
import { test } from "node:test";

import { compare, pressHeading, sortRows } from "../../../opd/view/js/table.js";

const size = { name: "size", value: ({ size }) => size };
const name = { name: "name", rising: true, value: ({ name }) => name };
const ROWS = [{ name: "b", size: 1 }, { name: "a", size: 1 }, { name: "c", size: null }, { name: "d", size: 2 }];
const namesOf = (rows) => rows.map(({ name }) => name).join("");

test("what is not there comes last either way", () => {
  for (const missing of [null, undefined, NaN]) {
    for (const descending of [false, true]) assert.ok(compare(missing, 1, descending) > 0 && compare(1, missing, descending) < 0);
  }
  assert.equal(compare(null, NaN), 0);
});

test("figures begin with the largest, texts with the least, and a heading turns when pressed again", () => {
  const once = pressHeading([], size);
  assert.equal(namesOf(sortRows(ROWS, once)), "dbac");
  assert.equal(namesOf(sortRows(ROWS, pressHeading(once, size))), "badc");
  assert.equal(namesOf(sortRows(ROWS, pressHeading([], name))), "abcd");
});

test("headings pressed before break the ties, and the rows given stay as they are", () => {
  const sorts = pressHeading(pressHeading([], name), size);
  assert.equal(namesOf(sortRows(ROWS, sorts)), "dabc");
  assert.equal(sorts.length, 2);
  assert.equal(namesOf(ROWS), "bacd");
});
