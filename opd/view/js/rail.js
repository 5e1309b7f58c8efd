/* The list of trajectories; a branch hangs under the one that it leaves. */

/** Every sample with its depth in the tree of variations, branches after their parent. */
function treeOrder(groups, count) {
  const branchOf = (sample) => groups.map(({ reviews }) => reviews[sample]?.branch).find(Boolean);
  const children = Map.groupBy(
    Array.from({ length: count }, (_, sample) => sample),
    (sample) => branchOf(sample)?.parent ?? null,
  );
  const walk = (parent, depth) =>
    (children.get(parent) ?? []).flatMap((sample) => [{ sample, depth, branch: branchOf(sample) }, ...walk(sample, depth + 1)]);
  return walk(null, 0);
}

class Rail {
  constructor(view, element) {
    this.view = view;
    this.element = element;
    this.title = element.querySelector("legend");
    this.entries = new Map(); // sample -> element
  }

  fill() {
    const { groups, count } = this.view;
    const right = groups.map(({ reviews }) => reviews.filter((review) => review.correct).length);
    const judged = groups.every(({ reviews }) => reviews.some((review) => review.correct !== null));
    this.title.textContent = judged ? `${right.join(" → ")} of ${count} right` : counted(count, "trajectory");
    for (const [sample, entry] of this.entries) {
      if (sample < count) continue;
      entry.remove();
      this.entries.delete(sample);
    }
    treeOrder(groups, count).forEach(({ sample, depth, branch }, place) => {
      if (!this.entries.has(sample)) this.entries.set(sample, this.makeEntry(sample));
      const entry = this.entries.get(sample);
      const there = this.element.children[place + 1]; // after the legend
      if (there !== entry) this.element.insertBefore(entry, there ?? null); // moving one in place would take its focus
      entry.style.setProperty("--depth", depth);
      this.fillEntry(entry, sample, branch);
    });
    this.draw();
  }

  makeEntry(sample) {
    const input = make("input");
    Object.assign(input, { type: "radio", name: `${this.view.name}-sample` });
    input.addEventListener("change", () => this.view.choose(sample));
    const parts = ["ordinal", "marks", "numbers", "origin", "barcodes"].map((name) => make("span", name));
    const entry = make("label", "", input, ...parts);
    entry.querySelector(".ordinal").textContent = `${sample + 1}`;
    entry.title = `Agreement with the teacher and mean penalty of trajectory ${sample + 1}; below, its penalties`;
    return entry;
  }

  fillEntry(entry, sample, branch) {
    const find = (selector) => entry.querySelector(selector);
    const reviews = this.view.groups.map(({ reviews: all }) => all[sample]).filter(Boolean);
    find("input").checked = sample === this.view.sample;
    find(".marks").replaceChildren(...reviews.map(correctMark));
    const writer = branch?.by === "teacher" ? "the teacher went on" : "the student went on";
    find(".origin").textContent = branch ? `from token ${branch.at + 1}, ${writer}` : "";
    const bars = find(".barcodes");
    while (bars.childElementCount > reviews.length) bars.lastElementChild.remove();
    while (bars.childElementCount < reviews.length) bars.append(make("canvas", "barcode"));
    const { report, judged, verdicts } = reviews.at(-1);
    const { agreement } = tally(verdicts, this.view.verdictNames);
    const agrees = judged ? [agreement === null ? "–" : percent(agreement)] : [];
    find(".numbers").textContent =
      report.mean_penalty === null ? "" : [...agrees, `${number(report.mean_penalty)} nats`].join(" · ");
  }

  draw() {
    for (const [sample, entry] of this.entries) {
      const reviews = this.view.groups.map(({ reviews: all }) => all[sample]).filter(Boolean);
      [...entry.querySelectorAll(".barcode")].forEach((canvas, i) => {
        if (reviews[i]?.count) drawBarcode(canvas, reviews[i], this.view.legend.steps, this.view.palette);
      });
    }
  }
}

function correctMark({ correct, finish_reason: finish }) {
  if (correct === null) return make("span", "mark", finish ? "·" : "…");
  return make("span", correct ? "mark right" : "mark wrong", correct ? "✓" : "✗");
}
