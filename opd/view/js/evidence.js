/* What rollouts have shown about a token (opd.grading.branching): how often each option ends right. */

import { make } from "./dom.js";
import { label, number } from "./words.js";

/** The Wilson 95 % interval of a share. */
export function wilson(right, n) {
  const z = 1.959964;
  const share = right / n;
  const centre = (share + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z / (1 + (z * z) / n)) * Math.sqrt((share * (1 - share)) / n + (z * z) / (4 * n * n));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}

/** Show the fork value of the pinned token in its card; null while the card is still empty. */
export function fillEvidence(box, value) {
  if (!box) return;
  box.hidden = !value;
  if (!value) return;
  const heading = make("h4", "", `Fork value: ${value.verdict}`);
  box.replaceChildren(heading, make("p", "", value.sentence), ...value.options.map(optionRow));
}

function optionRow({ text, by, n, right, kl }) {
  const bar = make("span", "bar");
  const row = make("div", "option", make("code", "", label(text)), bar);
  row.title = by === "teacher" ? "a choice of the teacher" : "what the student said";
  if (right !== null && n > 0) {
    const [low, high] = wilson(right, n);
    const fill = make("i", by);
    fill.style.width = `${(100 * right) / n}%`;
    const whisker = make("b");
    whisker.style.left = `${100 * low}%`;
    whisker.style.width = `${100 * (high - low)}%`;
    bar.append(fill, whisker);
    row.append(make("span", "figure", `${right} of ${n} right`));
  } else row.append(make("span", "figure", `${n} rollouts`));
  if (kl !== null) row.append(make("span", "kl", `${number(kl)} nats/token after it`));
  return row;
}
