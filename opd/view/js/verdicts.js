/*
 * Verdicts anew, when somebody edits a threshold. Equal to opd.verdicts.verdicts on every token: the columns
 * are the numbers that Python compares, and like there they are compared in single precision.
 */

import { counted, percent } from "./words.js";

export const DISAGREEMENTS = ["blunder", "mistake", "inaccuracy"];
export const JUDGED_COLUMNS = ["drop", "student_share", "teacher_share", "student_entropy", "student_rank", "teacher_rank"];

/** Judge tokens: { drop, student_share, ... } and { blunder, ... } -> indices into `names`. */
export function classify(columns, thresholds, names) {
  const index = Object.fromEntries(names.map((name, i) => [name, i]));
  const limit = Object.fromEntries(Object.entries(thresholds).map(([name, value]) => [name, Math.fround(value)]));
  const { drop, student_share: student, teacher_share: teacher } = columns;
  const { student_entropy: entropy, student_rank: studentRank, teacher_rank: teacherRank } = columns;
  return Uint8Array.from(drop, (lost, i) => {
    const best = teacherRank[i] === 1;
    if (best && studentRank[i] === 1 && entropy[i] < limit.forcedEntropy) return index.forced;
    if (lost >= limit.blunder) return index.blunder;
    if (lost >= limit.mistake) return index.mistake;
    if (lost >= limit.inaccuracy) return index.inaccuracy;
    const gain = Math.fround(teacher[i] - student[i]);
    if (gain >= limit.brilliantGain && student[i] < limit.brilliantStudent) return index.brilliant;
    if (best) return studentRank[i] > 1 ? index.great : index.best;
    return index.good;
  });
}

/**
 * How many of a text's own tokens, from `first` on, have each verdict; how many were a choice, and with how many of
 * these the teacher agrees.
 */
export function tally({ verdicts, ownFrom, ownTo }, names, first = ownFrom) {
  const counts = Object.fromEntries(names.map((name) => [name, 0]));
  for (let i = Math.max(first, ownFrom); i < ownTo; i++) counts[names[verdicts[i]]] += 1;
  const choices = names.reduce((sum, name) => sum + (name === "forced" ? 0 : counts[name]), 0);
  const disagreed = DISAGREEMENTS.reduce((sum, name) => sum + counts[name], 0);
  return { counts, choices, agreed: choices - disagreed };
}

/** An agreement in words; it means little without the number of choices that it is a share of. */
export const agreementWords = ({ agreed, choices }) => (choices ? `${percent(agreed / choices)} of ${choices}` : "–");

/**
 * What came of the students' answers, in words: one list of texts for each student; nothing where nobody verifies.
 * A branch is no attempt of its own, and an answer that was not verified is not wrong.
 */
export function answerWords(students) {
  const counts = students.map((texts) => {
    const own = texts.filter(({ branch }) => !branch);
    const verified = own.filter(({ correct }) => correct !== null);
    const unfinished = own.filter(({ correct, finish_reason: finish }) => correct === null && finish === null);
    return {
      right: verified.filter(({ correct }) => correct).length,
      verified: verified.length,
      unfinished: unfinished.length,
      unverified: own.length - verified.length - unfinished.length,
    };
  });
  const sum = (name) => counts.reduce((total, count) => total + count[name], 0);
  if (!sum("verified")) return [];
  const alike = counts.every(({ verified }) => verified === counts[0].verified);
  const right = alike
    ? `${counts.map((count) => count.right).join(" → ")} of ${counts[0].verified} right`
    : `${counts.map((count) => `${count.right} of ${count.verified}`).join(" → ")} right`;
  const others = [["unverified", "not verified"], ["unfinished", "unfinished"]];
  return [right, ...others.filter(([name]) => sum(name)).map(([name, words]) => `${sum(name)} ${words}`)];
}

/** How many texts there are, in words: branches apart. */
export function textWords(texts) {
  const branches = texts.filter(({ branch }) => branch).length;
  const own = counted(texts.length - branches, "trajectory");
  return branches ? [own, counted(branches, "branch")] : [own];
}
