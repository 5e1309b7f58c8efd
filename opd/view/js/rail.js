/* The list of trajectories; a branch hangs under the one that it leaves. */

import { make, partsOf } from "./dom.js";
import { drawBarcode } from "./strips.js";
import { agreementWords, answerWords, textWords } from "./verdicts.js";
import { number } from "./words.js";

/** Every sample with its depth in the tree of variations, branches after their parent. */
export function treeOrder(groups, count) {
  const branchOf = (sample) => groups.map(({ reviews }) => reviews[sample]?.branch).find(Boolean);
  const children = Map.groupBy(
    Array.from({ length: count }, (_, sample) => sample),
    (sample) => branchOf(sample)?.parent ?? null,
  );
  const walk = (parent, depth) =>
    (children.get(parent) ?? []).flatMap((sample) => [{ sample, depth, branch: branchOf(sample) }, ...walk(sample, depth + 1)]);
  return walk(null, 0);
}

export class Rail {
  constructor(view, element) {
    this.view = view;
    this.element = element;
    this.title = element.querySelector("legend");
    this.entries = new Map(); // sample -> element
    this.seen = new Set(); // samples within sight: of a thousand trajectories a dozen is drawn
    this.sight = new IntersectionObserver((changes) => changes.forEach((change) => this.see(change)));
  }

  fill() {
    const { groups, count } = this.view;
    const answers = answerWords(groups.map(({ reviews }) => reviews));
    const longest = groups.reduce((most, { reviews }) => (reviews.length > most.length ? reviews : most), []);
    this.title.textContent = (answers.length ? answers : textWords(longest)).join(", ");
    for (const [sample, entry] of this.entries) {
      if (sample < count) continue;
      this.sight.unobserve(entry);
      entry.remove();
      this.entries.delete(sample);
      this.seen.delete(sample);
    }
    const questions = Array.from({ length: count }, (_, sample) => this.reviewsOf(sample)[0].question);
    const several = new Set(questions).size > 1;
    let last = null;
    treeOrder(groups, count).forEach(({ sample, depth, branch }, place) => {
      if (!this.entries.has(sample)) this.entries.set(sample, this.makeEntry(sample));
      const entry = this.entries.get(sample);
      const there = this.element.children[place + 1]; // after the legend
      if (there !== entry) this.element.insertBefore(entry, there ?? null); // moving one in place would take its focus
      entry.style.setProperty("--depth", depth);
      entry.querySelector(".asked").textContent = several && questions[sample] !== last ? questions[sample] : "";
      last = questions[sample];
      this.fillEntry(entry, sample, branch);
    });
    this.draw();
  }

  /** What both or all students wrote as this sample. */
  reviewsOf(sample) {
    return this.view.groups.map(({ reviews }) => reviews[sample]).filter(Boolean);
  }

  makeEntry(sample) {
    const input = make("input");
    Object.assign(input, { type: "radio", name: `${this.view.name}-sample` });
    input.addEventListener("change", () => this.view.choose(sample));
    const parts = ["asked", "ordinal", "marks", "numbers", "origin", "barcodes"].map((name) => make("span", name));
    const entry = make("label", "", input, ...parts);
    entry.querySelector(".ordinal").textContent = `${sample + 1}`;
    entry.dataset.sample = sample;
    this.sight.observe(entry);
    entry.title =
      `Trajectory ${sample + 1}: both models’ agreement over its tokens, and its mean penalty; ` +
      "below, its penalties";
    return entry;
  }

  fillEntry(entry, sample, branch) {
    const find = partsOf(entry);
    const reviews = this.reviewsOf(sample);
    find("input").checked = sample === this.view.sample;
    find(".marks").replaceChildren(...reviews.map((review) => correctMark(review, this.view.growing)));
    const writer = branch?.by === "teacher" ? "the teacher went on" : "the student went on";
    find(".origin").textContent = branch ? `from token ${branch.at + 1}, ${writer}` : "";
    const bars = find(".barcodes");
    while (bars.childElementCount > reviews.length) bars.lastElementChild.remove();
    while (bars.childElementCount < reviews.length) bars.append(make("canvas", "barcode"));
    const review = reviews.at(-1);
    const { mean_penalty: penalty } = review.report;
    const agrees = review.judged ? [agreementWords(review.report)] : [];
    find(".numbers").textContent = penalty === null ? "" : [...agrees, `${number(penalty)} nats`].join(" · ");
  }

  /** Bring the chosen entry into sight when another was chosen; only the list moves, never the page. */
  reveal() {
    const chosen = `${this.view.key} ${this.view.sample}`;
    const entry = this.entries.get(this.view.sample);
    const { element } = this;
    if (this.revealed === chosen || !entry || !element.clientHeight) return; // it may be on a hidden tab
    this.revealed = chosen;
    const into = (start, size, from, length) =>
      start < from || start + size > from + length ? start - (length - size) / 2 : from;
    element.scrollTop = into(entry.offsetTop, entry.offsetHeight, element.scrollTop, element.clientHeight);
    element.scrollLeft = into(entry.offsetLeft, entry.offsetWidth, element.scrollLeft, element.clientWidth);
  }

  see({ target, isIntersecting }) {
    const sample = Number(target.dataset.sample);
    if (isIntersecting && this.entries.get(sample) === target) {
      this.seen.add(sample);
      this.drawEntry(sample);
    } else this.seen.delete(sample);
  }

  draw() {
    this.reveal();
    for (const sample of this.seen) this.drawEntry(sample);
  }

  drawEntry(sample) {
    const reviews = this.reviewsOf(sample);
    [...this.entries.get(sample).querySelectorAll(".barcode")].forEach((canvas, i) => {
      if (reviews[i]?.count) drawBarcode(canvas, reviews[i], this.view.legend.steps, this.view.palette);
    });
  }
}

function correctMark({ correct, finish_reason: finish }, growing) {
  if (correct === null) return make("span", "mark", !finish && growing ? "…" : "·");
  return make("span", correct ? "mark right" : "mark wrong", correct ? "✓" : "✗");
}
