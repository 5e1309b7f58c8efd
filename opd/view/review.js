/*
 * The token review component: graded trajectories, painted and made explorable.
 *
 * new ReviewView(root, { legend, alternatives }) takes the element of review.html; view.show(set) draws.
 *   legend        colour steps, verdicts and their rules, tokens per chunk (opd.view.payload.legend)
 *   alternatives  async (key, group, sample, chunk) => alternatives payload, or null if it is not there
 *
 * A set is { key, groups: [{ label, reviews }] }. A group is one student; sample i of every group is shown
 * together, one pane a group, so that before and after stand side by side. Showing a newer state of the same
 * trajectories extends the text in place: nothing that has been painted moves.
 *
 * A model's text only ever becomes a text node, and arrives with its invisible characters made visible.
 */

const SIGNALS = {
  penalty: {
    label: "penalty",
    formula:
      "log p(student) − log p(teacher) of the sampled token. " +
      "Red: the teacher likes it less than the student does. Blue: more.",
    ramp: (value) => (value < 0 ? "like" : "dislike"),
  },
  reverse_kl: {
    label: "reverse KL",
    formula:
      "Σ p(student) · log [p(student) / p(teacher)] over the vocabulary: " +
      "how far apart the two models are at this place.",
    ramp: () => "dislike",
  },
  student_entropy: {
    label: "student entropy",
    formula: "−Σ p(student) · log p(student): how open the choice was for the student.",
    ramp: () => "open",
  },
};

const FLOAT_COLUMNS = [
  "penalty", "reverse_kl", "student_entropy", "teacher_entropy", "student_logprobs", "teacher_logprobs",
];
const RAMPS = ["dislike", "like", "open"];
const DISAGREEMENTS = ["blunder", "mistake", "inaccuracy"];
const FINISH = { stop: "ended by itself", length: "cut off by the length limit" };
const GRAPH_CEILING = 8; // nats; fixed, so that any two graphs can be compared
const BLOCK_TOKENS = 192; // per block of text that the browser may skip while it is out of sight
const MAX_CANDIDATES = 7;
const RARE = 0.001; // a candidate that neither model gives as much is not worth a line
const POINTER_REACH = 3; // pixels
const PREVIEW_DELAY = 120; // ms; less would flicker under a passing pointer

// ---------------------------------------------------------------------------------------------- data

function decodeColumn(base64, Type) {
  return new Type(Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)).buffer);
}

/** Turn a review payload into typed arrays; everything else stays as it is. */
function decodeReview(payload) {
  const review = { ...payload };
  for (const name of FLOAT_COLUMNS) {
    review[name] = decodeColumn(payload[name], Float32Array);
  }
  review.teacher_rank = decodeColumn(payload.teacher_rank, Int32Array);
  review.verdicts = decodeColumn(payload.verdicts, Uint8Array);
  const flags = decodeColumn(payload.forks, Uint8Array);
  review.forks = [...flags.keys()].filter((index) => flags[index]);
  review.isFork = (index) => flags[index] === 1;
  return review;
}

function decodeAlternatives(payload) {
  const side = (name) => ({
    ids: decodeColumn(payload[`${name}_ids`], Int32Array),
    logprobs: decodeColumn(payload[`${name}_logprobs`], Float32Array),
  });
  return { ...payload, ids: decodeColumn(payload.ids, Int32Array), student: side("student"), teacher: side("teacher") };
}

/** Join both models' likeliest tokens at one place by token: [{ text, student, teacher, sampled }]. */
function candidatesAt(review, index, alternatives, offset) {
  const sampled = alternatives.ids[offset];
  const rows = new Map();
  const row = (id) => {
    if (!rows.has(id)) rows.set(id, { text: alternatives.vocabulary[id] });
    return rows.get(id);
  };
  for (const name of ["student", "teacher"]) {
    const { ids, logprobs } = alternatives[name];
    const width = ids.length / alternatives.tokens;
    for (let k = offset * width; k < (offset + 1) * width; k++) row(ids[k])[name] = Math.exp(logprobs[k]);
  }
  Object.assign(row(sampled), {
    text: review.tokens[index],
    student: Math.exp(review.student_logprobs[index]),
    teacher: Math.exp(review.teacher_logprobs[index]),
    sampled: true,
  });
  const likeliest = ({ student = 0, teacher = 0 }) => Math.max(student, teacher);
  const shown = [...rows.values()]
    .filter((candidate) => likeliest(candidate) >= RARE)
    .sort((a, b) => likeliest(b) - likeliest(a))
    .slice(0, MAX_CANDIDATES);
  if (!shown.includes(row(sampled))) shown.splice(MAX_CANDIDATES - 1, 1, row(sampled));
  return shown;
}

// ---------------------------------------------------------------------------------------------- words

const number = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const signed = (value) => (value >= 0 ? "+" : "") + number(value);
const plural = (count, noun) => (count === 1 ? noun : noun.endsWith("y") ? `${noun.slice(0, -1)}ies` : `${noun}s`);

function percent(share) {
  if (share > 0 && share < RARE) return "<0.1\u00a0%";
  return `${(100 * share).toFixed(share < 0.1 && share > 0 ? 1 : 0)}\u00a0%`;
}

/** A token as a label on one line: spaces as dots, no line break. */
const label = (token) => token.replaceAll("\n", "").replaceAll(" ", "·") || "∅";

/** Make an element; strings become text nodes. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function replaceTerms(list, entries) {
  list.replaceChildren(
    ...entries.map(([term, value, className = ""]) =>
      make("div", className, make("dt", "", term), make("dd", "", value)),
    ),
  );
}

// ---------------------------------------------------------------------------------------------- colour

/** The step of the ramp that a magnitude in nats falls on; 0 is no colour. */
function heatLevel(value, steps) {
  const magnitude = Math.abs(value);
  let level = 0;
  while (level < steps.length && magnitude >= steps[level]) level += 1;
  return level;
}

/** Resolve the CSS colours for the canvases. A custom property alone would come back as unresolved text. */
function readPalette(root) {
  const probe = make("span");
  probe.hidden = true;
  root.append(probe);
  const resolve = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const palette = Object.fromEntries(["line", "muted", "fork", "cursor", "window"].map((name) => [name, resolve(name)]));
  for (const ramp of RAMPS) palette[ramp] = [1, 2, 3, 4, 5, 6].map((step) => resolve(`${ramp}-${step}`));
  probe.remove();
  return palette;
}

/** Size a canvas to its box in device pixels and return a context in CSS pixels, or null while hidden. */
function prepareCanvas(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return null;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

/** For every pixel column the token of the largest magnitude: peaks survive when tokens are many. */
function peaks(values, columns) {
  const winners = new Int32Array(columns);
  for (let x = 0; x < columns; x++) {
    const first = Math.floor((x * values.length) / columns);
    const last = Math.max(first + 1, Math.floor(((x + 1) * values.length) / columns));
    winners[x] = first;
    for (let i = first + 1; i < last; i++) if (Math.abs(values[i]) > Math.abs(values[winners[x]])) winners[x] = i;
  }
  return winners;
}

/** The heatmap in miniature: one bar per token, coloured like it. */
function drawBarcode(canvas, review, signal, steps, palette) {
  const prepared = prepareCanvas(canvas);
  if (!prepared) return;
  const { context, width, height } = prepared;
  const values = review[signal];
  const columns = Math.min(Math.floor(width), values.length);
  const step = Math.min(width / columns, 6);
  peaks(values, columns).forEach((index, x) => {
    const level = heatLevel(values[index], steps);
    context.fillStyle = level ? palette[SIGNALS[signal].ramp(values[index])][level - 1] : palette.line;
    context.fillRect(x * step, level ? 0 : height / 2 - 0.5, Math.max(step - 0.5, 0.5), level ? height : 1);
  });
}

// ---------------------------------------------------------------------------------------------- pane

/** One trajectory: its report, its text and its graph. */
class Pane {
  constructor(view, group, fragment) {
    this.view = view;
    this.group = group;
    this.element = fragment.firstElementChild;
    const find = (selector) => this.element.querySelector(selector);
    this.title = find(".pane-title");
    this.report = find(".report");
    this.note = find(".note");
    this.text = find(".text");
    this.canvas = find("canvas");
    this.review = null;
    this.spans = [];
    this.listen();
  }

  show(review, title) {
    const grown = this.review && this.spans.every((span, i) => span.token === review.tokens[i]);
    if (!grown) this.clear();
    this.review = review;
    this.title.textContent = title;
    this.note.textContent = review.bias ?? "";
    this.note.hidden = !review.bias;
    this.fillReport();
    this.extendText();
    this.paint();
    return grown;
  }

  clear() {
    this.spans = [];
    this.text.replaceChildren();
    this.text.scrollTop = 0;
  }

  /** Append the tokens that are not there yet. */
  extendText() {
    let block = this.text.lastElementChild;
    for (let i = this.spans.length; i < this.review.tokens.length; i++) {
      const token = this.review.tokens[i];
      // A block ends only where a line ends: breaking elsewhere would show.
      if (!block || (block.childElementCount >= BLOCK_TOKENS && this.spans[i - 1].token.includes("\n"))) {
        block = make("div", "block");
        block.role = "presentation";
        this.text.append(block);
      }
      // A word's leading space stays unpainted: at the end of a line it would be a sliver of colour.
      const [space, word] = /^ \S/.test(token) ? [" ", token.slice(1)] : ["", token];
      const span = make("span", "", word);
      span.role = "option";
      span.token = token;
      span.index = i;
      this.spans.push(span);
      block.append(space, span);
    }
  }

  /** Colour the text by the signal; only classes change. */
  paint() {
    const { legend, signal } = this.view;
    this.spans.forEach((span, i) => {
      const value = this.review[signal][i];
      const level = heatLevel(value, legend.steps);
      const verdict = legend.verdicts[this.review.verdicts[i]];
      const classes = ["token", `is-${verdict.name}`];
      if (level) classes.push("heat", `${SIGNALS[signal].ramp(value)}-${level}`);
      if (this.review.isFork(i)) classes.push("fork");
      if (this.view.isPinned(this, i)) classes.push("cursor");
      const className = classes.join(" ");
      if (span.className !== className) span.className = className;
      if (verdict.glyph) span.dataset.glyph = verdict.glyph;
      else delete span.dataset.glyph;
    });
    this.drawGraph();
  }

  fillReport() {
    const { report, correct, finish_reason: finish } = this.review;
    const nats = (value) => (value === null ? "–" : `${number(value)} nats`);
    const entries = [];
    if (correct !== null) entries.push(["answer", correct ? "✓ right" : "✗ wrong", correct ? "right" : "wrong"]);
    entries.push(
      ["teacher agrees", report.agreement === null ? "–" : percent(report.agreement)],
      ["mean penalty", nats(report.mean_penalty)],
      ["mean reverse KL", nats(report.mean_reverse_kl)],
    );
    for (const name of DISAGREEMENTS) {
      const { glyph } = this.view.legend.verdicts.find((verdict) => verdict.name === name);
      const count = report.counts[name];
      entries.push([plural(count, name), `${count} ${glyph}`, `is-${name}`]);
    }
    const length = `${report.tokens.toLocaleString("en")} ${plural(report.tokens, "token")}`;
    entries.push(
      [plural(report.forks, "fork"), `${report.forks} ◆`, "is-fork"],
      [finish ? FINISH[finish] : "still writing …", length],
    );
    replaceTerms(this.report, entries);
  }

  /** The signal along the sequence. Square-root scale: small values stay visible beside large ones. */
  drawGraph() {
    const prepared = prepareCanvas(this.canvas);
    if (!prepared) return;
    const { context, width, height } = prepared;
    const { palette, legend, signal } = this.view;
    const values = this.review[signal];
    if (!values.length) return;
    const signedSignal = signal === "penalty";
    const base = height - (signedSignal ? 24 : 12);
    const extent = (value) => {
      const room = value < 0 ? height - base - 9 : base - 4;
      return room * Math.sqrt(Math.min(1, Math.abs(value) / GRAPH_CEILING));
    };
    const slot = this.slotWidth(width);

    const { scrollTop, scrollHeight, clientHeight } = this.text;
    if (scrollHeight > clientHeight + 1) {
      const perPixel = (slot * values.length) / scrollHeight;
      context.fillStyle = palette.window;
      context.fillRect(scrollTop * perPixel, 0, clientHeight * perPixel, height);
    }
    context.fillStyle = palette.line;
    context.fillRect(0, base, width, 1);
    const columns = Math.min(values.length, Math.floor(width));
    const columnWidth = slot * (values.length / columns);
    peaks(values, columns).forEach((index, x) => {
      const value = values[index];
      const level = Math.max(heatLevel(value, legend.steps), 2); // the palest steps are for areas, not for bars
      context.fillStyle = palette[SIGNALS[signal].ramp(value)][level - 1];
      const tall = extent(value);
      context.fillRect(x * columnWidth, value < 0 ? base + 1 : base - tall, Math.max(columnWidth - 1, 0.75), tall);
    });
    context.fillStyle = palette.fork;
    for (const index of this.review.forks) diamond(context, (index + 0.5) * slot, height - 4, 3.2);
    const marked = this.view.hovered?.pane === this ? this.view.hovered.index : this.view.pinnedIndex(this);
    if (marked !== null) {
      context.strokeStyle = palette.cursor;
      context.lineWidth = 1.5;
      context.strokeRect(marked * slot - 1, 1, slot + 1, height - 2);
    }
  }

  /** Width of one token in the graph; short trajectories keep slim bars instead of filling the strip. */
  slotWidth(width = this.canvas.clientWidth) {
    return Math.min(width / this.review.tokens.length, 14);
  }

  listen() {
    const { text, canvas, view } = this;
    const indexOf = (event) => event.target.index ?? null;
    text.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "touch") view.hover(this, indexOf(event));
    });
    text.addEventListener("pointerleave", () => view.hover(this, null));
    text.addEventListener("click", (event) => {
      if (indexOf(event) !== null) view.pin(this, indexOf(event));
    });
    text.addEventListener("scroll", () => this.drawGraph(), { passive: true });
    text.addEventListener("keydown", (event) => view.key(this, event));

    canvas.addEventListener("pointermove", (event) => view.hover(this, this.indexAt(event.offsetX)));
    canvas.addEventListener("pointerleave", () => view.hover(this, null));
    canvas.addEventListener("click", (event) => {
      const index = this.indexAt(event.offsetX);
      if (index !== null) view.pin(this, index);
    });
  }

  /** The token at a place of the graph; where bars are thin, the tallest within reach of the pointer. */
  indexAt(x) {
    const slot = this.slotWidth();
    const values = this.review[this.view.signal];
    const reach = Math.floor(POINTER_REACH / slot);
    const under = Math.floor(x / slot);
    if (under >= values.length) return null;
    let best = Math.max(under, 0);
    for (let i = Math.max(under - reach, 0); i <= Math.min(under + reach, values.length - 1); i++) {
      if (Math.abs(values[i]) > Math.abs(values[best])) best = i;
    }
    return best;
  }

  /** Scroll the text, and only the text, until the token is in sight. */
  reveal(index) {
    const token = this.spans[index].getBoundingClientRect();
    const box = this.text.getBoundingClientRect();
    const above = token.top - box.top - 24;
    const below = token.bottom - box.bottom + 24;
    if (above < 0) this.text.scrollTop += above;
    else if (below > 0) this.text.scrollTop += below;
  }

  /** The token nearest above or below: lines exist only in the layout. */
  lineNeighbour(index, direction) {
    const middle = ({ left, right }) => (left + right) / 2;
    const box = (i) => this.spans[i].getClientRects()[0] ?? this.spans[i].getBoundingClientRect();
    const here = box(index);
    let best = index;
    let line = null;
    for (let i = index + direction; i >= 0 && i < this.spans.length; i += direction) {
      const there = box(i);
      if (Math.abs(there.top - here.top) < here.height / 2) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) >= here.height / 2) break;
      const distance = (other) => Math.abs(middle(other) - middle(here));
      if (best === index || distance(there) < distance(box(best))) best = i;
    }
    return best;
  }

  forkNeighbour(index, direction) {
    const { forks } = this.review;
    if (!forks.length) return index;
    if (direction > 0) return forks.find((fork) => fork > index) ?? forks[0];
    return forks.findLast((fork) => fork < index) ?? forks[forks.length - 1];
  }
}

function diamond(context, x, y, radius) {
  context.beginPath();
  context.moveTo(x, y - radius);
  context.lineTo(x + radius, y);
  context.lineTo(x, y + radius);
  context.lineTo(x - radius, y);
  context.fill();
}

// ---------------------------------------------------------------------------------------------- card

/** Fill a card with one token: verdict, sentence, both models' candidates, figures. */
function fillCard(card, template, review, index, legend, candidates) {
  card.replaceChildren(template.content.cloneNode(true));
  const find = (selector) => card.querySelector(selector);
  const verdict = legend.verdicts[review.verdicts[index]];

  find(".token").textContent = label(review.tokens[index]);
  find(".position").textContent = `token ${index + 1} of ${review.tokens.length}`;
  find(".judgement").append(make("span", `verdict is-${verdict.name}`, `${verdict.name} ${verdict.glyph}`.trim()));
  if (review.isFork(index)) find(".judgement").append(make("span", "verdict is-fork", "fork ◆"));
  find(".sentence").append(...sentence(review, index, candidates));

  if (candidates) find(".candidates").append(...candidates.map(candidateRow));
  else find(".candidates").remove();
  replaceTerms(find(".figures"), [
    ["penalty", `${signed(review.penalty[index])} nats`],
    ["reverse KL", `${number(review.reverse_kl[index])} nats`],
    ["entropy of the student", `${number(review.student_entropy[index])} nats`],
    ["entropy of the teacher", `${number(review.teacher_entropy[index])} nats`],
    ["the teacher's rank", `${review.teacher_rank[index] + 1}`],
  ]);
}

/** What happened here, in words. */
function sentence(review, index, candidates) {
  const student = percent(Math.exp(review.student_logprobs[index]));
  const teacher = percent(Math.exp(review.teacher_logprobs[index]));
  const rank = review.teacher_rank[index];
  const words = [`The student gave this token ${student}, the teacher ${teacher}`];
  const favourite = teacherFavourite(candidates);
  if (rank === 0) words.push(": its first choice too.");
  else if (favourite) {
    const wish = make("code", "", label(favourite.text));
    words.push(". The teacher would rather say ", wish, ` (${percent(favourite.teacher)}).`);
  } else words.push(`, as its choice number ${rank + 1}.`);
  return words;
}

const teacherFavourite = (candidates) =>
  candidates?.reduce((best, candidate) => ((candidate.teacher ?? 0) > (best.teacher ?? 0) ? candidate : best));

function candidateRow({ text, student, teacher, sampled }) {
  const side = (name, share) => {
    const bar = make("i");
    bar.style.width = `${100 * (share ?? 0)}%`;
    // Beyond a model's list of likeliest tokens its probability is not known, only that it is small.
    const figure = make("span", share === undefined ? "figure unknown" : "figure", share === undefined ? "–" : percent(share));
    if (share === undefined) figure.title = `not among the ${name}'s likeliest tokens`;
    return make("span", `share ${name}`, figure, make("span", "track", bar));
  };
  const name = make("code", "", label(text));
  return make("div", sampled ? "candidate sampled" : "candidate", side("student", student), name, side("teacher", teacher));
}

// ---------------------------------------------------------------------------------------------- view

class ReviewView {
  constructor(root, { legend, alternatives }) {
    this.root = root;
    this.legend = legend;
    this.fetchAlternatives = alternatives;
    this.name = `review-${Math.random().toString(36).slice(2)}`; // groups the radio buttons of this instance
    this.signal = "penalty";
    this.sample = 0;
    this.set = null;
    this.panes = [];
    this.chunks = new Map();
    this.pinned = null; // { pane, index }
    this.hovered = null;
    const find = (selector) => root.querySelector(selector);
    this.parts = {
      signals: find(".signals"), formula: find(".formula"), scale: find(".scale"), rail: find(".rail"),
      prompt: find(".prompt"), panes: find(".panes"), side: find(".side"), pinned: find(".pinned"),
      preview: find(".preview"), live: find(".live"), guide: find(".guide"), verdicts: find(".verdicts"),
    };
    this.templates = { pane: find("[data-part=pane]"), card: find("[data-part=card]") };
    this.buildLegend();
    this.palette = readPalette(root);
    this.watchSurroundings();
  }

  // -- what is shown

  show(set) {
    const sameSet = this.set?.key === set.key;
    const groups = set.groups.map((group) => ({ ...group, reviews: group.reviews.map(decodeReview) }));
    this.set = { ...set, groups };
    if (!sameSet) {
      this.sample = 0;
      this.chunks.clear();
    }
    const count = Math.max(0, ...groups.map((group) => group.reviews.length));
    this.sample = Math.min(this.sample, Math.max(count - 1, 0));
    this.root.toggleAttribute("data-empty", count === 0);
    this.fillRail(count);
    this.fillPanes();
  }

  fillPanes() {
    const { groups } = this.set;
    const shown = groups.filter((group) => group.reviews[this.sample]);
    if (this.panes.length !== shown.length) {
      this.unpin();
      this.panes = shown.map((_, group) => new Pane(this, group, this.templates.pane.content.cloneNode(true)));
      this.parts.panes.replaceChildren(...this.panes.map((pane) => pane.element));
    }
    this.parts.panes.dataset.count = shown.length;
    this.panes.forEach((pane, group) => {
      const grown = pane.show(shown[group].reviews[this.sample], shown.length > 1 ? shown[group].label : "");
      if (!grown && this.pinned?.pane === pane) this.unpin();
    });
    const question = shown[0]?.reviews[this.sample].messages.findLast((message) => message.role === "user");
    this.parts.prompt.textContent = question?.content ?? "";
  }

  repaint() {
    for (const pane of this.panes) pane.paint();
    this.drawBarcodes();
  }

  // -- the list of trajectories

  fillRail(count) {
    const { rail } = this.parts;
    const { groups } = this.set;
    const right = groups.map(({ reviews }) => reviews.filter((review) => review.correct).length);
    const judged = groups.every(({ reviews }) => reviews.some((review) => review.correct !== null));
    rail.firstElementChild.textContent = judged
      ? `${right.join(" → ")} of ${count} right`
      : `${count} ${plural(count, "trajectory")}`;

    while (rail.querySelectorAll("label").length > count) rail.lastElementChild.remove();
    for (let i = rail.querySelectorAll("label").length; i < count; i++) rail.append(this.railEntry(i));
    [...rail.querySelectorAll("label")].forEach((entry, i) => {
      const reviews = groups.map((group) => group.reviews[i]).filter(Boolean);
      entry.querySelector("input").checked = i === this.sample;
      entry.querySelector(".marks").replaceChildren(...reviews.map(correctMark));
      const bars = entry.querySelector(".barcodes");
      while (bars.childElementCount > reviews.length) bars.lastElementChild.remove();
      while (bars.childElementCount < reviews.length) bars.append(make("canvas", "barcode"));
      const { agreement, mean_penalty: penalty } = reviews[reviews.length - 1].report;
      entry.querySelector(".numbers").textContent =
        penalty === null ? "" : `${agreement === null ? "–" : percent(agreement)} · ${number(penalty)} nats`;
    });
    this.drawBarcodes();
  }

  railEntry(index) {
    const input = make("input");
    Object.assign(input, { type: "radio", name: `${this.name}-sample` });
    input.addEventListener("change", () => {
      this.sample = index;
      this.fillPanes();
    });
    const parts = ["marks", "barcodes", "numbers"].map((name) => make("span", name));
    const entry = make("label", "", input, make("span", "ordinal", `${index + 1}`), ...parts);
    entry.title = `Agreement with the teacher and mean penalty of trajectory ${index + 1}`;
    return entry;
  }

  drawBarcodes() {
    [...this.parts.rail.querySelectorAll(".barcodes")].forEach((bars, i) => {
      [...bars.children].forEach((canvas, group) => {
        const review = this.set.groups[group].reviews[i];
        if (review?.tokens.length) drawBarcode(canvas, review, this.signal, this.legend.steps, this.palette);
      });
    });
  }

  // -- legend and signal

  buildLegend() {
    const { signals, verdicts, scale } = this.parts;
    for (const [name, { label: text }] of Object.entries(SIGNALS)) {
      const input = make("input");
      Object.assign(input, { type: "radio", name: `${this.name}-signal`, value: name, checked: name === this.signal });
      input.addEventListener("change", () => {
        this.signal = name;
        this.fillScale();
        this.repaint();
      });
      signals.append(make("label", "", input, make("span", "", text)));
    }
    this.fillScale();
    replaceTerms(
      verdicts,
      this.legend.verdicts
        .filter((verdict) => verdict.rule)
        .map(({ name, glyph, rule }) => [`${name} ${glyph}`.trim(), rule, `is-${name}`]),
    );
    verdicts.append(make("div", "is-fork", make("dt", "", "fork ◆"), make("dd", "", this.legend.fork)));
    scale.title = "Fixed scale: colours of any two pictures can be compared.";
  }

  fillScale() {
    const { steps } = this.legend;
    this.parts.formula.textContent = SIGNALS[this.signal].formula;
    const swatch = (ramp, step, text) => make("span", `swatch heat ${ramp}-${step}`, text);
    const positive = SIGNALS[this.signal].ramp(1);
    const swatches = steps.map((from, i) => swatch(positive, i + 1, String(from)));
    if (this.signal === "penalty") {
      swatches.unshift(...steps.map((from, i) => swatch("like", i + 1, `−${from}`)).reverse());
    }
    this.parts.scale.replaceChildren(...swatches, make("span", "unit", "nats"));
  }

  // -- hover, pin, keys

  hover(pane, index) {
    clearTimeout(this.hoverTimer);
    const wasOpen = !this.parts.preview.hidden;
    if (index === null) {
      this.parts.preview.hidden = true;
      this.hovered = null;
    } else {
      this.hovered = { pane, index };
      this.hoverTimer = setTimeout(() => this.preview(pane, index), wasOpen ? 0 : PREVIEW_DELAY);
    }
    pane.drawGraph();
  }

  async preview(pane, index) {
    if (this.isPinned(pane, index)) {
      this.parts.preview.hidden = true; // its card is there already
      return;
    }
    const candidates = await this.candidates(pane, index);
    if (this.hovered?.pane !== pane || this.hovered.index !== index) return;
    const { preview } = this.parts;
    fillCard(preview, this.templates.card, pane.review, index, this.legend, candidates);
    preview.hidden = false;
    this.placePreview(pane.spans[index]);
  }

  /** Below the token, or above where there is no room: never on its line. */
  placePreview(token) {
    const { preview } = this.parts;
    const at = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const frame = this.root.getBoundingClientRect();
    const left = Math.min(at.left - frame.left, frame.width - preview.offsetWidth - 8);
    const fitsBelow = at.bottom + preview.offsetHeight + 16 < window.innerHeight;
    preview.style.left = `${Math.max(8, left)}px`;
    preview.style.top = `${fitsBelow ? at.bottom - frame.top + 10 : at.top - frame.top - preview.offsetHeight - 10}px`;
  }

  isPinned(pane, index) {
    return this.pinned?.pane === pane && this.pinned.index === index;
  }

  pinnedIndex(pane) {
    return this.pinned?.pane === pane ? this.pinned.index : null;
  }

  async pin(pane, index) {
    this.unmark();
    this.pinned = { pane, index };
    this.parts.preview.hidden = true;
    const span = pane.spans[index];
    span.classList.add("cursor");
    span.ariaSelected = "true";
    span.id = `${this.name}-cursor`;
    pane.text.setAttribute("aria-activedescendant", span.id);
    pane.reveal(index);
    pane.drawGraph();

    const candidates = await this.candidates(pane, index);
    if (!this.isPinned(pane, index)) return;
    const { pinned, guide, side } = this.parts;
    fillCard(pinned, this.templates.card, pane.review, index, this.legend, candidates);
    pinned.querySelector(".close").addEventListener("click", () => this.unpin());
    pinned.hidden = false;
    guide.hidden = true;
    side.dataset.open = "";
    this.announce(pane.review, index, candidates);
  }

  /** Take the marks of the pinned token off the text. */
  unmark() {
    if (!this.pinned) return;
    const { pane, index } = this.pinned;
    const span = pane.spans[index];
    pane.text.removeAttribute("aria-activedescendant");
    span?.classList.remove("cursor");
    span?.removeAttribute("id");
    span?.removeAttribute("aria-selected");
    this.pinned = null;
    pane.drawGraph();
  }

  unpin() {
    this.unmark();
    this.parts.pinned.hidden = true;
    this.parts.guide.hidden = false;
    delete this.parts.side.dataset.open;
  }

  announce(review, index, candidates) {
    const verdict = this.legend.verdicts[review.verdicts[index]];
    const words = [`token ${index + 1}`, `“${review.tokens[index].trim()}”`, verdict.name];
    if (review.isFork(index)) words.push("fork");
    words.push(`penalty ${signed(review.penalty[index])}`);
    const favourite = teacherFavourite(candidates);
    if (review.teacher_rank[index] > 0 && favourite) {
      words.push(`teacher prefers “${favourite.text.trim()}”, ${percent(favourite.teacher)}`);
    }
    this.parts.live.textContent = words.join(", ");
  }

  key(pane, event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !pane.spans.length) return;
    const here = this.pinnedIndex(pane);
    const last = pane.spans.length - 1;
    const from = here ?? 0;
    const target = {
      ArrowRight: () => (here === null ? 0 : Math.min(here + 1, last)),
      ArrowLeft: () => Math.max(from - 1, 0),
      ArrowDown: () => pane.lineNeighbour(from, 1),
      ArrowUp: () => pane.lineNeighbour(from, -1),
      Home: () => 0,
      End: () => last,
      n: () => pane.forkNeighbour(here ?? -1, 1),
      p: () => pane.forkNeighbour(here ?? last + 1, -1),
    }[event.key];
    if (target) this.pin(pane, target());
    else if (event.key === "Escape") this.unpin();
    else return;
    event.preventDefault();
  }

  // -- alternatives, fetched when somebody looks

  async candidates(pane, index) {
    const chunk = Math.floor(index / this.legend.chunk);
    const offset = index % this.legend.chunk;
    const address = [pane.group, this.sample, chunk].join();
    let alternatives = this.chunks.get(address);
    // A growing trajectory outgrows what was fetched of it.
    if (!alternatives || (await alternatives)?.tokens <= offset) {
      alternatives = this.fetchAlternatives(this.set.key, pane.group, this.sample, chunk).then(
        (payload) => payload && decodeAlternatives(payload),
      );
      this.chunks.set(address, alternatives);
    }
    const there = await alternatives;
    if (!there) this.chunks.delete(address);
    return there && offset < there.tokens ? candidatesAt(pane.review, index, there, offset) : null;
  }

  // -- the page around us

  watchSurroundings() {
    const recolour = () => {
      this.palette = readPalette(this.root);
      if (this.set) this.repaint();
    };
    new MutationObserver(recolour).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    // Also fires when a hidden tab is shown, the moment the canvases get a size.
    new ResizeObserver(() => this.set && this.repaint()).observe(this.parts.panes);
  }
}

function correctMark({ correct, finish_reason: finish }) {
  if (correct === null) return make("span", "mark", finish ? "·" : "…");
  return make("span", correct ? "mark right" : "mark wrong", correct ? "✓" : "✗");
}
