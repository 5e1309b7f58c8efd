/*
 * Verdicts anew, when somebody edits a threshold. Equal to opd.verdicts.verdicts on every token: the columns
 * are the numbers that Python compares, and like there they are compared in single precision.
 */

import { counted, percent } from "./words.js";

export const DISAGREEMENTS = ["blunder", "mistake", "inaccuracy"];
export const JUDGED_COLUMNS = ["drop", "blame", "student_share", "teacher_share", "student_entropy", "student_rank", "teacher_rank"];

/** Judge tokens: { drop, blame, student_share, ... } and { blunder, ... } -> indices into `names`. */
export function classify(columns, thresholds, names) {
  const index = Object.fromEntries(names.map((name, i) => [name, i]));
  const limit = Object.fromEntries(Object.entries(thresholds).map(([name, value]) => [name, Math.fround(value)]));
  const { drop, blame, student_share: student, teacher_share: teacher } = columns;
  const { student_entropy: entropy, student_rank: studentRank, teacher_rank: teacherRank } = columns;
  return Uint8Array.from(blame, (blamed, i) => {
    const best = teacherRank[i] === 1;
    if (best && studentRank[i] === 1 && entropy[i] < limit.forcedEntropy) return index.forced;
    if (student[i] < limit.slip && teacher[i] < limit.slip && drop[i] >= limit.inaccuracy) return index.slip;
    if (blamed >= limit.blunder) return index.blunder;
    if (blamed >= limit.mistake) return index.mistake;
    if (blamed >= limit.inaccuracy) return index.inaccuracy;
    const gain = Math.fround(teacher[i] - student[i]);
    if (gain >= limit.brilliantGain && student[i] < limit.brilliantStudent) return index.brilliant;
    if (best) return studentRank[i] > 1 ? index.great : index.best;
    return index.good;
  });
}

/** How many of a text's own tokens have each verdict. */
export function tally({ verdicts, ownFrom, ownTo }, names) {
  const counts = Object.fromEntries(names.map((name) => [name, 0]));
  for (let i = ownFrom; i < ownTo; i++) counts[names[verdicts[i]]] += 1;
  return counts;
}

/** The agreement of both models on a text's own tokens from `first` on, and how many these are; null if unknown. */
export function agreementFrom({ agreement, ownFrom, ownTo }, first) {
  const shares = agreement?.subarray(Math.max(first, ownFrom), ownTo);
  return shares?.length ? { share: shares.reduce((sum, share) => sum + share) / shares.length, tokens: shares.length } : null;
}

/** An agreement in words; it means little without the number of tokens that it is a mean over. */
export const agreementWords = ({ agreement, tokens, bound }) =>
  agreement === null ? "–" : `${bound ? "≤ " : ""}${percent(agreement)} of ${tokens}`;

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
