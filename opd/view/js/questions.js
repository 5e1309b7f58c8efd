/*
 * What the quiz asks: guess the teacher. At a fork the text stops, and the reader chooses what the teacher would say.
 *
 * Half of the questions are forks where the student strayed; were they all, the answer "not the student's token"
 * would always be right, and the student could never score. The other half are places where the student hesitated
 * and took the teacher's first choice. Branches are left out: what was forced there tells what the teacher wanted.
 * (So the student's score says how the questions were chosen, not how good it is; the reader, who does not know
 * which kind a question is, can beat it.)
 */

import { likeliest } from "./data.js";
import { DISAGREEMENTS } from "./verdicts.js";
import { RARE, label } from "./words.js";

export const NEAR_TIE = 0.8; // of the likeliest: what the teacher gives at least this share of it is right too
const HESITATION = 0.3; // nats of student entropy
const FEWEST_OPTIONS = 3;
const MOST_OPTIONS = 5;
export const MOST_OF_A_KIND = 10; // questions
const ANYWAY_OF_A_KIND = 3; // questions of one kind, however few there are of the other
// A token by which a chat is kept apart, as "<|assistant|>", "</s>" or "[INST]": nobody would guess that a text goes on
// so. "<p>" and "</div>" are text.
const CONTROL =
  /^(<[|｜][^<>\s]+>|<[^<>\s]+[|｜]>|<\/?(s|bos|eos|pad|unk|mask|sep|cls|start_of_turn|end_of_turn|unused\d+)>|\[\/?[A-Z_]+\])$/;
export const TRIED = 3; // places per question that is wanted: some turn out to be no question
const HASH_START = 0x811c9dc5;

/** Stir a text into a 32-bit hash (FNV-1a). */
function stir(hash, text) {
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash;
}

/** Spread a hash's last bits over all (the finalizer of MurmurHash3), so that hashes can be sorted by. */
function spread(hash) {
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

/** The forks where the teacher minds what was said. */
export function strayedForks({ forkDefinition, verdictNames }, review) {
  if (review.branch || !review.judged) return [];
  return review.forks(forkDefinition).filter((index) => DISAGREEMENTS.includes(verdictNames[review.verdicts[index]]));
}

/** Where the teacher's first choice was taken and was not the only one: the student may have hesitated. */
function wellChosen({ verdictNames }, review) {
  if (review.branch || !review.judged) return [];
  const places = Array.from(review.drop.keys());
  return places.filter((index) => review.drop[index] === 0 && verdictNames[review.verdicts[index]] !== "forced");
}

/**
 * Every place to ask at, by kind and in an order without meaning, forks by entropy first where that counts. No
 * two places show the same text so far.
 */
export function quizPlaces(view) {
  const byEntropy = view.legend.forks.findIndex(({ name }) => name === "entropy");
  const kinds = { strayed: [], hesitated: [] };
  const seen = new Set();
  for (const [group, { reviews }] of view.groups.entries()) {
    for (const [sample, review] of reviews.entries()) {
      const strayed = new Set(strayedForks(view, review));
      const places = new Set([...strayed, ...wellChosen(view, review)]);
      const open = new Set(review.forks(byEntropy));
      let hash = stir(HASH_START, JSON.stringify(review.messages));
      let read = 0;
      for (const index of [...places].sort((a, b) => a - b)) {
        hash = stir(hash, review.text.slice(read, review.starts[index]));
        read = review.starts[index];
        if (seen.has(hash)) continue;
        seen.add(hash);
        kinds[strayed.has(index) ? "strayed" : "hesitated"].push({ group, sample, review, index, hash, open: open.has(index) });
      }
    }
  }
  for (const places of Object.values(kinds)) places.sort((a, b) => spread(a.hash) - spread(b.hash));
  kinds.hesitated.sort((a, b) => b.open - a.open);
  return kinds;
}

const addShares = (a, b) => (a === undefined || b === undefined ? (a ?? b) : a + b);

/** What both models list at a place, as it shows: { text, student, teacher, sampled }, equal texts as one. */
function shownCandidates({ listed }) {
  const shown = new Map();
  for (const { spelling, student, teacher, sampled } of listed) {
    const text = label(spelling);
    const same = shown.get(text) ?? { text };
    shown.set(text, {
      text,
      student: addShares(same.student, student),
      teacher: addShares(same.teacher, teacher),
      sampled: Boolean(same.sampled || sampled),
    });
  }
  return [...shown.values()].sort((a, b) => likeliest(b) - likeliest(a));
}

/**
 * The question at a place: { ...place, options, best, said }. An option is a candidate that is `right` or not.
 * Null where there is nothing to ask: candidates are not at hand or too few, most of them would be right, or the
 * student neither strayed nor hesitated.
 */
export function makeQuestion(place, details, strayed) {
  if (!details) return null;
  const candidates = shownCandidates(details);
  const first = (name) => candidates.reduce((best, other) => ((other[name] ?? 0) > (best[name] ?? 0) ? other : best));
  const best = first("teacher");
  const said = candidates.find(({ sampled }) => sampled);
  for (const candidate of candidates) candidate.right = (candidate.teacher ?? 0) >= NEAR_TIE * best.teacher;
  if (said.right === strayed || (!strayed && details.figures.student_entropy < HESITATION)) return null;

  const options = new Set([said, best, first("student")]);
  const tooFew = () => options.size < FEWEST_OPTIONS || 2 * countRight([...options]) > options.size;
  for (const candidate of candidates) {
    if (CONTROL.test(candidate.text)) continue;
    if (options.size < MOST_OPTIONS && (likeliest(candidate) >= RARE || tooFew())) options.add(candidate);
  }
  if (tooFew()) return null;
  // In an order that depends on the place and the texts alone: it says nothing.
  const order = (option) => spread(stir(place.hash, option.text));
  return { ...place, options: [...options].sort((a, b) => order(a) - order(b)), best, said };
}

/** Put questions in an order that changes trajectories, and goes forward within each. */
export function mixQuestions(questions) {
  for (const own of Map.groupBy(questions, ({ review }) => review).values()) {
    own.sort((a, b) => a.index - b.index).forEach((question, turn) => (question.turn = turn));
  }
  return questions.sort((a, b) => a.turn - b.turn || spread(a.hash) - spread(b.hash));
}

/** As many of either kind as of the other, but for a few. */
export function evenOut(strayed, hesitated) {
  const upTo = (questions, others) => questions.slice(0, Math.max(ANYWAY_OF_A_KIND, others.length));
  return [upTo(strayed, hesitated), upTo(hesitated, strayed)];
}

/** How many of some options or answers are right. */
export const countRight = (answers) => answers.filter(({ right }) => right).length;
