/* Payloads (opd.view.payload) become typed arrays, and what is not there yet is fetched. */

import { RARE } from "./words.js";

export const FLAG_VERDICT = 15;
const FLAG_SPECIAL = 16;
const FIRST_FORK_BIT = 5;
const LONG_TOKEN = 255; // in the column of lengths: look into "long"
const MAX_CANDIDATES = 7;

const DECODERS = {
  "<f4": (bytes) => new Float32Array(bytes.buffer),
  "<i4": (bytes) => new Int32Array(bytes.buffer),
  "<u1": (bytes) => bytes,
  "<f2": (bytes) => Float32Array.from(new Uint16Array(bytes.buffer), halfToFloat),
};

export function decodeColumn(base64, dtype) {
  return DECODERS[dtype](Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)));
}

/** Shares from 0 to 1, in 255 steps. */
const decodeShares = (base64) => Float32Array.from(decodeColumn(base64, "<u1"), (step) => step / 255);

export function halfToFloat(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : (fraction / 1024) * 2 ** -14);
}

/** One graded trajectory. */
export class GradedText {
  constructor(payload) {
    const { text, lengths, long, flags, penalty, drop, agreement, spans, own, ...rest } = payload;
    this.messages = rest.messages;
    this.reasoning = rest.reasoning; // from one token up to another
    Object.assign(this, rest);
    this.text = text;
    this.flags = decodeColumn(flags, "<u1");
    this.count = this.flags.length;
    this.starts = new Uint32Array(this.count + 1);
    decodeColumn(lengths, "<u1").forEach((length, i) => {
      this.starts[i + 1] = this.starts[i] + (length === LONG_TOKEN ? long[i] : length);
    });
    // In half precision until the exact column is asked for; enough for colours.
    this.penalty = decodeColumn(penalty, "<f2");
    this.drop = drop && decodeShares(drop);
    this.agreement = agreement && decodeShares(agreement);
    // Where the teacher has another tokenizer: the first token of each token's span, -1 where it is not graded.
    this.spans = spans && decodeColumn(spans, "<i4");
    this.judged = !spans; // spans have no verdicts
    // What the student chose here, from one token up to another: of a branch only what comes after the forced.
    this.ownFrom = own[0];
    this.ownTo = own[1];
    this.verdicts = this.flags.map((flag) => flag & FLAG_VERDICT);
  }

  token(index) {
    return this.text.slice(this.starts[index], this.starts[index + 1]);
  }

  /** What was asked last. */
  get question() {
    return this.messages.findLast((message) => message.role === "user")?.content ?? "";
  }

  isSpecial(index) {
    return (this.flags[index] & FLAG_SPECIAL) !== 0;
  }

  /** Whether a token belongs to what is thought before the answer. */
  isReasoning(index) {
    return index >= this.reasoning[0] && index < this.reasoning[1];
  }

  isUngraded(index) {
    return this.spans !== null && this.spans[index] < 0;
  }

  isOwn(index) {
    return index >= this.ownFrom && index < this.ownTo;
  }

  /** The places of the tokens that were graded as one with this one. */
  together(index) {
    if (!this.spans || this.isUngraded(index)) return [index];
    const first = this.spans[index];
    let end = first;
    while (this.spans[end] === first) end += 1;
    return Array.from({ length: end - first }, (_, i) => first + i);
  }

  /** The places of the student's own forks by the definition with this number. */
  forks(definition) {
    const bit = 1 << (FIRST_FORK_BIT + definition);
    const places = [];
    this.flags.forEach((flag, index) => flag & bit && this.isOwn(index) && places.push(index));
    return places;
  }

  /** How many tokens of an older state of this text stand here unchanged; 0 if it is another text. */
  continues(older) {
    const same =
      older.count <= this.count &&
      this.text.startsWith(older.text) &&
      older.starts.every((start, index) => start === this.starts[index]);
    return same ? older.count : 0;
  }
}

function decodeAlternatives(payload) {
  const side = (name) => ({
    ids: decodeColumn(payload[`${name}_ids`], "<i4"),
    logprobs: decodeColumn(payload[`${name}_logprobs`], "<f4"),
  });
  const columns = Object.entries(payload.columns).map(([name, { dtype, data }]) => [name, decodeColumn(data, dtype)]);
  return {
    ...payload,
    ids: decodeColumn(payload.ids, "<i4"),
    columns: Object.fromEntries(columns),
    student: side("student"),
    teacher: side("teacher"),
  };
}

/**
 * Everything exact about one token: { figures, listed, candidates }. A figure is missing where the review lacks
 * it. `listed` are both models' likeliest tokens and the sampled one, likeliest first, each { id, text, spelling,
 * student, teacher, sampled }; a share is missing where the token is not among that model's likeliest. The text
 * is as it stands here, the spelling as anywhere. `candidates` are those of them that a card shows.
 */
export function detailsAt(text, alternatives, offset) {
  const columns = Object.entries(alternatives.columns);
  const known = columns.filter(([, values]) => !Number.isNaN(values[offset]));
  const figures = Object.fromEntries(known.map(([name, values]) => [name, values[offset]]));
  const rows = new Map();
  const newRow = (id, spelling) => rows.set(id, { id, text: spelling, spelling }).get(id);
  const row = (id) => rows.get(id) ?? newRow(id, alternatives.vocabulary[id] ?? text);
  const sampled = row(alternatives.ids[offset]);
  // A teacher with another tokenizer has ids of its own: the same text stands for the same choice.
  const foreign = alternatives.teacher_vocabulary;
  const foreignRow = (id) => [...rows.values()].find(({ spelling }) => spelling === foreign[id]) ?? newRow(`teacher ${id}`, foreign[id]);
  for (const { name, rowOf } of [{ name: "student", rowOf: row }, { name: "teacher", rowOf: foreign ? foreignRow : row }]) {
    const { ids, logprobs } = alternatives[name];
    const width = ids.length / alternatives.tokens;
    for (let k = offset * width; k < (offset + 1) * width; k++) {
      if (ids[k] >= 0) rowOf(ids[k])[name] = Math.exp(logprobs[k]);
    }
  }
  const { student_share: student, teacher_share: teacher } = figures;
  Object.assign(sampled, { text, student, teacher, sampled: true });

  const listed = [...rows.values()].sort((a, b) => likeliest(b) - likeliest(a));
  const shown = new Set([sampled, teacherFavourite(listed)]); // however flat both models are
  for (const candidate of listed) {
    if (shown.size < MAX_CANDIDATES && likeliest(candidate) >= RARE) shown.add(candidate);
  }
  return { figures, listed, candidates: listed.filter((candidate) => shown.has(candidate)) };
}

export const likeliest = ({ student, teacher }) => Math.max(student ?? 0, teacher ?? 0);

export const teacherFavourite = (candidates) =>
  candidates.reduce((best, candidate) => ((candidate.teacher ?? 0) > (best.teacher ?? 0) ? candidate : best));

/** What has been fetched of one set: columns of signals, chunks of alternatives. */
export class Fetched {
  constructor(source, chunk) {
    this.source = source;
    this.chunk = chunk;
    this.promises = new Map();
  }

  reset(key) {
    this.key = key;
    this.promises.clear();
  }

  /** Fetch once, and again when a growing trajectory has outgrown what came (`tokens` are needed of it). */
  async get(address, tokens, fetch) {
    // Without a pause where nothing is on its way yet: of two who ask at once, one fetches.
    const known = this.promises.has(address) ? await this.promises.get(address) : null;
    if (known && known.tokens >= tokens) return known;
    const key = this.key;
    const promise = fetch().catch(() => null);
    this.promises.set(address, promise);
    const fetched = await promise;
    if (!fetched && this.promises.get(address) === promise) this.promises.delete(address);
    return key === this.key ? fetched : null;
  }

  /** A column as long as the text; NaN where the server does not have it yet, null where there is none. */
  async column(group, sample, name, text) {
    const fetched = await this.get(["column", group, sample, name].join(), text.count, async () => {
      const payload = await this.source.columns(this.key, group, sample, name);
      const values = payload && decodeColumn(payload.data, payload.dtype);
      return values && { values, tokens: values.length };
    });
    if (!fetched) return null;
    if (fetched.values.length === text.count) return fetched.values;
    const values = new Float32Array(text.count).fill(NaN);
    values.set(fetched.values.subarray(0, text.count));
    return values;
  }

  /** What student and teacher read before the text; null where it is not at hand. */
  prompt(group, sample) {
    return this.get(["prompt", group, sample].join(), 1, async () => {
      const read = await this.source.prompt(this.key, group, sample);
      return read && { ...read, tokens: read.student.ids.length };
    });
  }

  async details(group, sample, index, text) {
    const chunk = Math.floor(index / this.chunk);
    const offset = index % this.chunk;
    const alternatives = await this.get(["chunk", group, sample, chunk].join(), offset + 1, async () => {
      const payload = await this.source.alternatives(this.key, group, sample, chunk);
      return payload && decodeAlternatives(payload);
    });
    return alternatives && offset < alternatives.tokens ? detailsAt(text.token(index), alternatives, offset) : null;
  }
}
