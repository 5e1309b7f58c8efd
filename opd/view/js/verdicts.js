/*
 * Verdicts anew, when somebody edits a threshold. Equal to opd.verdicts.verdicts on every token: the columns
 * are the numbers that Python compares, and like there they are compared in single precision.
 */

const DISAGREEMENTS = ["blunder", "mistake", "inaccuracy"];
const JUDGED_COLUMNS = ["drop", "student_share", "teacher_share", "student_entropy", "student_rank", "teacher_rank"];

/** Judge tokens: { drop, student_share, ... } and { blunder, ... } -> indices into `names`. */
function classify(columns, thresholds, names) {
  const index = Object.fromEntries(names.map((name, i) => [name, i]));
  const limit = Object.fromEntries(Object.entries(thresholds).map(([name, value]) => [name, Math.fround(value)]));
  const { drop, student_share: student, teacher_share: teacher } = columns;
  const { student_entropy: entropy, student_rank: studentRank, teacher_rank: teacherRank } = columns;
  return Uint8Array.from(drop, (lost, i) => {
    const best = teacherRank[i] === 0;
    if (best && studentRank[i] === 0 && entropy[i] < limit.forcedEntropy) return index.forced;
    if (lost >= limit.blunder) return index.blunder;
    if (lost >= limit.mistake) return index.mistake;
    if (lost >= limit.inaccuracy) return index.inaccuracy;
    const gain = Math.fround(teacher[i] - student[i]);
    if (gain >= limit.brilliantGain && student[i] < limit.brilliantStudent) return index.brilliant;
    if (best) return studentRank[i] > 0 ? index.great : index.best;
    return index.good;
  });
}

/** How many tokens from `first` on have each verdict, and the share with a choice that the teacher minds little. */
function tally(verdicts, names, first = 0, last = verdicts.length) {
  const counts = Object.fromEntries(names.map((name) => [name, 0]));
  for (let i = first; i < last; i++) counts[names[verdicts[i]]] += 1;
  const chosen = Math.max(0, last - first) - counts.forced;
  const disagreed = DISAGREEMENTS.reduce((sum, name) => sum + counts[name], 0);
  return { counts, agreement: chosen ? 1 - disagreed / chosen : null };
}
