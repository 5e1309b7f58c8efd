import assert from "node:assert/strict";
import { test } from "node:test";

import { Fetched, GradedText, decodeColumn, detailsAt, halfToFloat, teacherFavourite } from "../../../opd/view/js/data.js";

const base64 = (values) => Buffer.from(values.buffer).toString("base64");

/** A text as opd.view.payload.set_payload gives it; a flag of 32 is a fork by the first definition. */
function text(pieces, { flags = pieces.map(() => 0), spans = null, own = [0, pieces.length], ...more } = {}) {
  const lengths = pieces.map((piece) => Math.min(piece.length, 255));
  const long = Object.fromEntries(pieces.flatMap((piece, i) => (piece.length >= 255 ? [[i, piece.length]] : [])));
  return new GradedText({
    text: pieces.join(""), lengths: base64(Uint8Array.from(lengths)), long, flags: base64(Uint8Array.from(flags)),
    penalty: base64(new Uint16Array(pieces.length)), drop: null, agreement: null, spans: spans && base64(Int32Array.from(spans)), own,
    messages: [{ role: "user", content: "first" }, { role: "assistant", content: "" }], ...more,
  });
}

test("half precision", () => {
  assert.deepEqual([0x3c00, 0xc000, 0x0001, 0x7c00, 0xfc00].map(halfToFloat), [1, -2, 2 ** -24, Infinity, -Infinity]);
  assert.ok(Number.isNaN(halfToFloat(0x7e00)));
  assert.deepEqual([...decodeColumn(base64(Float32Array.of(1.5, -2)), "<f4")], [1.5, -2]);
});

test("tokens of any length are found", () => {
  const review = text(["a", "b".repeat(300), "", "c"]);
  assert.deepEqual([0, 1, 2, 3].map((i) => review.token(i).length), [1, 300, 0, 1]);
  assert.equal(review.question, "first");
});

test("forks are the student's own", () => {
  const review = text(["a", "b", "c"], { flags: [32, 32, 64], own: [1, 3] });
  assert.deepEqual(review.forks(0), [1]);
  assert.deepEqual(review.forks(1), [2]);
});

test("tokens that were graded as one belong together, and what was not graded to nothing", () => {
  const review = text(["a", "b", "c", "d"], { spans: [0, 0, -1, 3] });
  assert.deepEqual([0, 1, 2, 3].map((i) => review.together(i)), [[0, 1], [0, 1], [2], [3]]);
  assert.ok(review.isUngraded(2) && !review.judged);
});

test("a text goes on only where its tokens stay", () => {
  assert.equal(text(["a", "b", "c"]).continues(text(["a", "b"])), 2);
  assert.equal(text(["ab", "c"]).continues(text(["a", "b"])), 0);
});

function alternatives() {
  const model = (ids, logprobs) => ({ ids: Int32Array.from(ids), logprobs: Float32Array.from(logprobs) });
  return {
    tokens: 1, ids: Int32Array.of(7), vocabulary: { 7: " a", 8: " b" }, teacher_vocabulary: null,
    columns: { student_share: Float32Array.of(0.5), teacher_share: Float32Array.of(0.25), jsd: Float32Array.of(NaN) },
    student: model([7, -1], [Math.log(0.5), 0]), teacher: model([8, 7], [Math.log(0.75), Math.log(0.25)]),
  };
}

test("both models' candidates are one list, and a figure that is not there is left out", () => {
  const { figures, listed } = detailsAt(" a", alternatives(), 0);
  assert.deepEqual(Object.keys(figures), ["student_share", "teacher_share"]);
  assert.deepEqual(listed.map(({ id, sampled = false }) => [id, sampled]), [[8, false], [7, true]]);
  assert.equal(listed[0].student, undefined);
  assert.equal(teacherFavourite(listed).id, 8);
});

test("two who ask at once fetch once, and what was outgrown is fetched again", async () => {
  let asked = 0;
  const columns = async () => ({ dtype: "<f4", data: base64(new Float32Array(asked++ ? 3 : 2)) });
  const fetched = new Fetched({ columns }, 256);
  fetched.reset("key");
  const of = (count) => fetched.column(0, 0, "jsd", { count });
  assert.deepEqual((await Promise.all([of(2), of(2)])).map((column) => column.length), [2, 2]);
  assert.equal(asked, 1);
  assert.equal((await of(3)).length, 3);
  assert.equal(asked, 2);
});
