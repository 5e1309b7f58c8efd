/* What is said of a trajectory as a whole: its note, its figures, the caption of its picture. */

import { SIGNALS } from "./signals.js";
import { DISAGREEMENTS, agreementFrom, agreementWords, tally } from "./verdicts.js";
import { counted, number, percent, plural } from "./words.js";

const GOES_ALONG = 0.8; // agreement: from here on the teacher may be said to go along with a text
const MINDS = 0.5; // agreement: below this it minds most of a text
const FINISH = { stop: "ended by itself", length: "cut off by the length limit" };

export function noteOf({ notes, replaced, report: { tokens, graded } }) {
  const words = [...notes];
  if (replaced) words.push(`${counted(replaced, "token")} cannot be written as text and ${replaced === 1 ? "shows" : "show"} \ufffd.`);
  if (graded < tokens) words.push(`${counted(tokens - graded, "token")} could not be graded: hatched.`);
  return words.join(" ");
}

/** The figures: [name, value, class] each. */
export function figuresOf(pane) {
  const { forks, review, view } = pane;
  const { report, correct, finish_reason: finish, branch, count } = review;
  const own = branch?.by !== "teacher"; // else no figure would be the student's
  const judged = own && review.judged;
  const counts = tally(review, view.verdictNames);
  const nats = (value, digits = 2) => (value === null ? "–" : `${number(value, digits)} nats`);
  const entries = [];
  if (correct !== null) entries.push(["answer", correct ? "✓ right" : "✗ wrong", correct ? "right" : "wrong"]);
  if (judged) entries.push(["agreement", agreementWords(report), "agreement"]);
  for (const name of judged ? DISAGREEMENTS : []) {
    const count = counts[name];
    const { glyph } = view.legend.verdicts[view.verdictNames.indexOf(name)];
    entries.push([plural(count, name), pane.countButton(name, `${count} ${glyph}`), `is-${name}`]);
  }
  const ifJudged = (...rows) => (judged ? rows : []); // the distributions of two tokenizers are not compared
  if (own) {
    entries.push(
      [plural(forks.length, "fork"), pane.countButton("fork", `${forks.length} ◆`), "is-fork"],
      ["mean penalty", nats(report.mean_penalty)],
      ...ifJudged(["mean reverse KL", nats(report.mean_reverse_kl)], ["total reverse KL", nats(report.total_reverse_kl, 1)]),
      ["mean student entropy", nats(report.mean_student_entropy)],
      ...ifJudged(["top-k overlap", report.overlap === null ? "–" : percent(report.overlap)]),
    );
  }
  const end = finish ? FINISH[finish] : view.growing ? "still writing …" : "unfinished";
  return [...entries, [end, counted(count, "token")]];
}

/** What the graph shows, and what the teacher made of the text after a fork. */
export function captionOf(pane) {
  const { view, review } = pane;
  const { label: name, unit } = SIGNALS[view.signal];
  const scale = view.signal === "teacher_rank" ? "logarithmic" : "square-root";
  const top = [Number((2 * view.steps.at(-1)).toPrecision(2)).toLocaleString("en"), unit].join(" ").trim();
  const words = [`${name[0].toUpperCase()}${name.slice(1)} per ${view.granularity}, ${scale} scale up to ${top}.`];
  const downstream = pane.downstream();
  const agreement = downstream && agreementFrom(review, downstream.at + 1);
  if (agreement) {
    const { share, tokens } = agreement;
    const reading =
      share >= GOES_ALONG
        ? ": the teacher goes along with what stands there, which is no praise of the ending"
        : share < MINDS
          ? ": the teacher minds most of what follows too"
          : "";
    words.push(`Downstream of fork ${downstream.fork} they agree on ${percent(share)} of ${counted(tokens, "token")}${reading}.`);
  }
  if (review.evidence?.noReturn) words.push(review.evidence.noReturn.sentence);
  return words.join(" ");
}
