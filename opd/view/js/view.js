/*
 * The token review component: graded trajectories, painted and made explorable. A model's text only ever becomes a
 * text node, and arrives with its invisible characters made visible.
 *
 * The entry: new ReviewView(root, { legend, source, actions, onState }) takes the element of review.html;
 * view.show(set) draws.
 *   legend   colour steps, verdicts and their thresholds, fork definitions (opd.view.payload.legend)
 *   source   what is fetched when somebody looks; async, null where it is not there
 *              columns(key, group, sample, name)         a column (opd.view.payload.columns_payload)
 *              alternatives(key, group, sample, chunk)   (opd.view.payload.alternatives_payload)
 *              prompt(key, group, sample)                what was read (opd.view.payload.prompt_payload)
 *   actions  callbacks, all optional; an absent one has no button. Each gets { key, group, sample, index }:
 *              branch       + token: that token is forced at index, and the student goes on
 *              typed        + text: the same with a text
 *              teacherLine  the teacher goes on from before index
 *              forkValue    does the choice at index decide the answer?
 *              noReturn     (no index) where does a right answer get out of reach?
 *   onState  called a moment after the view changed, with what view.state() returns
 *
 * A set is { key, groups: [{ label, reviews }] } (opd.view.payload.set_payload), and optionally continues (the key
 * of the set that it adds to: the page stays where it is), opens (a sample to go to, once) and growing (its unfinished
 * texts are still being written). A group is one student; sample i of every group is shown together, one pane a group:
 * before and after stand side by side.
 * Showing a newer state of the same trajectories extends the text in place: nothing that has been painted moves.
 *
 * view.state() is { sample, group, token, signal }, token null where none is pinned; view.restore(state) goes
 * back to it as soon as that place is there. What a state leaves out is as in a fresh view.
 */

import { addActions, announcement, fillCard } from "./card.js";
import { Fetched, GradedText, teacherFavourite } from "./data.js";
import { delayed, onRecolour, partsOf } from "./dom.js";
import { fillEvidence } from "./evidence.js";
import { Finder } from "./find.js";
import { Legend } from "./legend.js";
import { Pane } from "./pane.js";
import { Preview } from "./preview.js";
import { Quiz } from "./quiz.js";
import { Rail } from "./rail.js";
import { SIGNALS, domainOf } from "./signals.js";
import { readPalette } from "./strips.js";
import { JUDGED_COLUMNS, classify } from "./verdicts.js";

const STATE_DELAY = 250; // ms

export class ReviewView {
  /** @param {any} given see above */
  constructor(root, given) {
    const { legend, source } = given;
    this.root = root;
    this.legend = legend;
    this.actions = given.actions ?? {};
    this.tellState = delayed(() => this.count && given.onState?.(this.state()), STATE_DELAY);
    this.verdictNames = legend.verdicts.map((verdict) => verdict.name);
    this.name = `review-${Math.random().toString(36).slice(2)}`; // groups the radio buttons of this instance
    this.signal = "penalty";
    this.granularity = "token";
    this.fit = this.cumulative = this.tabled = false;
    this.filter = "";
    this.forkDefinition = legend.forks.findIndex(({ name }) => name === legend.defaultForks);
    this.thresholds = legend.thresholds;
    this.edited = false; // the thresholds are not the usual ones
    this.steps = legend.steps;
    this.key = null;
    this.growing = false;
    this.groups = [];
    this.count = 0;
    this.sample = 0;
    this.panes = [];
    this.opened = null; // the sample that the set asked to open
    this.pinned = null; // { pane, index }
    this.restoring = null; // a state whose place is not there yet
    this.turn = 0; // counts what was asked for; late answers to older turns are dropped
    const find = partsOf(root);
    this.parts = {
      prompt: find(".prompt"), panes: find(".panes"), side: find(".side"), pinned: find(".pinned"),
      live: find(".live"), guide: find(".guide"), help: find(".help"),
    };
    this.templates = { pane: find("[data-part=pane]"), card: find("[data-part=card]") };
    this.fetched = new Fetched(source, legend.chunk);
    this.palette = readPalette(root);
    this.preview = new Preview(this, find(".preview"), this.templates.card);
    this.rail = new Rail(this, find(".rail"));
    this.finder = new Finder(this, find(".find"));
    this.controls = new Legend(this, root);
    this.quiz = new Quiz(this, find(".quiz"), find(".to-quiz"));
    find(".ask").addEventListener("click", () => this.parts.help.showModal());
    this.parts.help.querySelector("button").addEventListener("click", () => this.parts.help.close());
    root.dataset.units = this.granularity;
    this.controls.update();
    this.watchSurroundings();
  }

  // -- what is shown

  show(set) {
    // Stopped is stopped: a state that was on its way when somebody pressed Stop comes late.
    const goesOn = this.key === set.key && (set.opens ?? this.opened) === this.opened;
    this.growing = (set.growing ?? false) && (this.growing || !goesOn);
    if (![set.key, set.continues].includes(this.key)) {
      this.sample = 0;
      this.opened = null;
    }
    if (this.key !== set.key) {
      this.key = set.key;
      this.fetched.reset(set.key);
    }
    if ((set.opens ?? this.opened) !== this.opened) this.sample = this.opened = set.opens;
    const older = this.groups;
    this.groups = set.groups.map(({ label, reviews }, group) => ({
      label,
      reviews: reviews.map((payload, sample) => this.decode(payload, older[group]?.reviews[sample])),
    }));
    this.count = Math.max(0, ...this.groups.map((group) => group.reviews.length));
    this.sample = Math.min(this.sample, Math.max(this.count - 1, 0));
    this.root.toggleAttribute("data-empty", this.count === 0);
    this.fillPanes();
    this.rail.fill();
    if (this.edited) this.judge();
    if (this.restoring) this.restore(this.restoring);
    if (this.pinned) this.showEvidence();
  }

  /** Read a payload; what was judged by edited thresholds stays so until it is judged anew. */
  decode(payload, older) {
    const review = new GradedText(payload);
    if (this.edited && older && review.continues(older)) review.verdicts.set(older.verdicts);
    return review;
  }

  choose(sample) {
    this.sample = sample;
    this.unpin();
    this.fillPanes();
    this.rail.fill();
    this.tellState();
  }

  fillPanes() {
    const shown = this.groups.flatMap(({ label, reviews }, group) =>
      reviews[this.sample] ? [{ label, group, review: reviews[this.sample] }] : [],
    );
    if (this.panes.map((pane) => pane.group).join() !== shown.map(({ group }) => group).join()) {
      this.unpin();
      this.panes = shown.map(({ group }) => new Pane(this, group, this.templates.pane.content.cloneNode(true)));
      this.parts.panes.replaceChildren(...this.panes.map((pane) => pane.element));
    }
    this.panes.forEach((pane, i) => {
      const { review, label: title } = shown[i];
      const grown = pane.show(review, shown.length > 1 ? title : "");
      if (grown) return;
      if (this.pinned?.pane === pane) this.unpin();
      if (review.branch) pane.sheet.reveal(review.branch.at, { centre: true });
    });
    this.parts.prompt.textContent = shown[0]?.review.question ?? "";
    this.finder.mark();
    this.refresh();
  }

  /** Fetch what the choices need and paint; new tokens do not wait for their colour. */
  async refresh() {
    const turn = ++this.turn;
    const pending = this.panes.map((pane) => pane.load()).filter(Boolean);
    if (!pending.length || this.panes.some((pane) => pane.codes.includes(-1))) this.paint();
    if (!pending.length) return;
    await Promise.all(pending);
    if (turn === this.turn) this.paint();
  }

  paint() {
    for (const pane of this.panes) pane.prepare();
    this.steps = domainOf(this.signal, this.legend, this.fit && this.panes.map((pane) => pane.unitValues));
    for (const pane of this.panes) pane.paint();
    this.controls.update();
    this.quiz.offer();
  }

  // -- choices

  set(choices) {
    Object.assign(this, choices);
    this.root.dataset.units = this.granularity;
    this.root.toggleAttribute("data-tabled", this.tabled);
    this.refresh();
  }

  colourBy(signal) {
    this.set({ signal });
    this.tellState();
  }

  filterBy(filter) {
    this.filter = filter;
    if (filter) this.root.dataset.filter = filter;
    else delete this.root.dataset.filter;
    for (const pane of this.panes) pane.draw();
  }

  /** Judge by other thresholds from now on. */
  judgeBy(thresholds) {
    this.thresholds = thresholds;
    this.edited = true;
    this.controls.showThresholds();
    return this.judge();
  }

  async judge() {
    const { thresholds, groups } = this;
    for (const [group, { reviews }] of groups.entries()) {
      for (const [sample, review] of reviews.entries()) {
        const fetched = await Promise.all(
          JUDGED_COLUMNS.map((name) => this.fetched.column(group, sample, name, review)),
        );
        if (this.thresholds !== thresholds || this.groups !== groups) return;
        if (fetched.includes(null)) continue;
        const columns = Object.fromEntries(JUDGED_COLUMNS.map((name, i) => [name, fetched[i]]));
        review.verdicts = classify(columns, thresholds, this.verdictNames);
      }
    }
    this.paint();
    this.rail.fill();
    if (this.pinned) this.showCard();
  }

  // -- what is pointed at, what is pinned

  pinnedIndex(pane) {
    return this.pinned?.pane === pane ? this.pinned.index : null;
  }

  isPinned(pane, index) {
    return this.pinnedIndex(pane) === index;
  }

  detailsAt(pane, index) {
    return this.fetched.details(pane.group, this.sample, index, pane.review);
  }

  async pin(pane, index) {
    this.unmark();
    this.pinned = { pane, index };
    this.preview.hide();
    pane.mark(index, true);
    pane.sheet.reveal(index);
    this.tellState();
    await this.showCard();
  }

  async showCard() {
    const { pane, index } = this.pinned;
    const details = await this.detailsAt(pane, index);
    if (!this.isPinned(pane, index)) return;
    const { pinned, guide, side } = this.parts;
    fillCard(pinned, this.templates.card, pane, index, details);
    this.showEvidence();
    addActions(pinned, this.actionsFor(pane.review), () => this.target());
    pinned.querySelector(".close").addEventListener("click", () => this.unpin());
    pinned.hidden = false;
    guide.hidden = true;
    side.dataset.open = "";
    this.keepAboveSheet(pane.sheet.spans[index]);
    this.say(announcement(pane, index, details));
  }

  /** On a narrow page the card is a sheet over its lower half: move the page until it does not hide the token. */
  keepAboveSheet(token) {
    const { pinned } = this.parts;
    if (getComputedStyle(pinned).position !== "fixed") return;
    const hidden = token.getBoundingClientRect().bottom + 12 - pinned.getBoundingClientRect().top;
    if (hidden > 0) window.scrollBy(0, hidden);
  }

  showEvidence() {
    const { pane, index } = this.pinned;
    fillEvidence(this.parts.pinned.querySelector(".evidence"), pane.review.evidence?.forkValue?.[index]);
  }

  /** What can be done from a token: nothing where the teacher's choices are no tokens of the student. */
  actionsFor(review) {
    return review.spans ? {} : this.actions;
  }

  /** What an action is about. */
  target() {
    const { pane, index } = this.pinned;
    return { key: this.key, group: pane.group, sample: this.sample, index };
  }

  unmark() {
    const was = this.pinned;
    this.pinned = null;
    was?.pane.mark(was.index, false);
  }

  unpin() {
    if (!this.pinned) return;
    this.unmark();
    this.parts.pinned.hidden = true;
    this.parts.guide.hidden = false;
    delete this.parts.side.dataset.open;
    this.tellState();
  }

  /** A verdict's name with its sign. */
  verdictWords(verdict) {
    const { name, glyph } = this.legend.verdicts[verdict];
    return `${name} ${glyph}`.trim();
  }

  say(words) {
    this.parts.live.textContent = words;
  }

  /** Let the student go on with the teacher's first choice at the pinned token. */
  async branchHere() {
    if (!this.pinned || !this.actionsFor(this.pinned.pane.review).branch) return;
    const { pane, index } = this.pinned;
    const details = await this.detailsAt(pane, index);
    if (!details || !this.isPinned(pane, index)) return;
    const favourite = teacherFavourite(details.candidates);
    if (favourite.sampled) this.say("This token is the teacher’s first choice already.");
    else this.actions.branch({ ...this.target(), token: favourite.id });
  }

  teacherLineHere() {
    if (this.pinned) this.actionsFor(this.pinned.pane.review).teacherLine?.(this.target());
  }

  // -- state

  state() {
    const { sample, signal, pinned } = this;
    return { sample, group: pinned?.pane.group ?? 0, token: pinned?.index ?? null, signal };
  }

  restore(state) {
    this.restoring = state;
    const { sample = 0, group = 0, token = null, signal = "penalty" } = state;
    const review = this.groups[group]?.reviews[sample];
    const awaited = !review || (token !== null && token >= review.count);
    if (awaited && !this.isComplete()) return;
    this.restoring = null;
    if (Object.hasOwn(SIGNALS, signal) && signal !== this.signal) this.colourBy(signal);
    if (awaited) return;
    if (sample !== this.sample) this.choose(sample);
    const pane = this.panes.find((candidate) => candidate.group === group);
    if (token !== null && pane) this.pin(pane, token);
  }

  /** Whether there is something to show and nothing of it still grows. */
  isComplete() {
    const reviews = this.groups.flatMap((group) => group.reviews);
    return reviews.length > 0 && !(this.growing && reviews.some((review) => review.finish_reason === null));
  }

  // -- the page around us

  watchSurroundings() {
    const redraw = () => {
      for (const pane of this.panes) pane.draw();
      this.rail.draw();
    };
    onRecolour(() => {
      this.palette = readPalette(this.root);
      redraw();
    });
    // Also fires when a hidden tab is shown, the moment the canvases get a size.
    new ResizeObserver(() => {
      for (const pane of this.panes) pane.sheet.resized();
      redraw();
    }).observe(this.parts.panes);
  }
}
