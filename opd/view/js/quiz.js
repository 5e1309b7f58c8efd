/*
 * The quiz: guess the teacher. At a fork the text stops, and the reader chooses what the teacher would say next.
 *
 * A modal dialog covers the page, so that nothing behind it can give the teacher away and everything is as it
 * was when it closes. Half of the questions are forks where the student strayed; were they all, the answer
 * "not the student's token" would always be right, and the student could never score. The other half are places
 * where the student hesitated and took the teacher's first choice. Branches are left out: what was forced there
 * tells what the teacher wanted. (So the student's score says how the questions were chosen, not how good it is;
 * the reader, who does not know which kind a question is, can beat it.)
 */

const NEAR_TIE = 0.8; // of the likeliest: what the teacher gives at least this share of it is right too
const HESITATION = 0.3; // nats of student entropy
const FEWEST_OPTIONS = 3;
const MOST_OPTIONS = 5;
const MOST_OF_A_KIND = 10; // questions
const ANYWAY_OF_A_KIND = 3; // questions of one kind, however few there are of the other
// A token by which a chat is kept apart, as "<|assistant|>", "</s>" or "[INST]": nobody would guess that a text goes on
// so. "<p>" and "</div>" are text.
const CONTROL =
  /^(<[|｜][^<>\s]+>|<[^<>\s]+[|｜]>|<\/?(s|bos|eos|pad|unk|mask|sep|cls|start_of_turn|end_of_turn|unused\d+)>|\[\/?[A-Z_]+\])$/;
const TRIED = 3; // places per question that is wanted: some turn out to be no question
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
function strayedForks({ forkDefinition, verdictNames }, review) {
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
function quizPlaces(view) {
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
function makeQuestion(place, details, strayed) {
  if (!details) return null;
  const candidates = shownCandidates(details);
  const first = (name) => candidates.reduce((best, other) => ((other[name] ?? 0) > (best[name] ?? 0) ? other : best));
  const best = first("teacher");
  const said = candidates.find(({ sampled }) => sampled);
  for (const candidate of candidates) candidate.right = (candidate.teacher ?? 0) >= NEAR_TIE * best.teacher;
  if (said.right === strayed || (!strayed && details.figures.student_entropy < HESITATION)) return null;

  const options = new Set([said, best, first("student")]);
  const tooFew = () => options.size < FEWEST_OPTIONS || 2 * rights([...options], "right") > options.size;
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
function mixQuestions(questions) {
  for (const own of Map.groupBy(questions, ({ review }) => review).values()) {
    own.sort((a, b) => a.index - b.index).forEach((question, turn) => (question.turn = turn));
  }
  return questions.sort((a, b) => a.turn - b.turn || spread(a.hash) - spread(b.hash));
}

class Quiz {
  constructor(view, dialog, button) {
    this.view = view;
    this.dialog = dialog;
    this.button = button;
    const find = (name) => dialog.querySelector(`.quiz-${name}`);
    const names = ["title", "score", "leave", "result", "play", "asked", "passage", "options", "reveal", "next", "rule", "live"];
    this.parts = Object.fromEntries(names.map((name) => [name, find(name)]));
    button.addEventListener("click", () => this.open());
    this.parts.leave.addEventListener("click", () => dialog.close());
    this.parts.next.addEventListener("click", () => this.next());
    dialog.addEventListener("keydown", (event) => this.press(event));
  }

  /** Offer the quiz where there is a fork to ask about. */
  offer() {
    const { view } = this;
    const isFork = (review) => strayedForks(view, review).length > 0;
    this.button.hidden = !view.groups.some(({ reviews }) => reviews.some(isFork));
  }

  async open() {
    const { parts, dialog } = this;
    this.questions = [];
    parts.play.hidden = parts.result.hidden = true;
    parts.title.textContent = "Looking for forks …";
    parts.score.textContent = parts.rule.textContent = "";
    dialog.showModal();
    const opened = (this.opened = {}); // closed and opened again, the older answer is dropped
    const { rule, questions } = await this.plan();
    if (!dialog.open || this.opened !== opened) return;
    Object.assign(this, { questions, at: -1, answers: [], streak: 0, chosen: null });
    if (!questions.length) {
      this.say((parts.title.textContent = "There is nothing to ask: no fork has candidates at hand that differ enough."));
      return;
    }
    parts.rule.textContent = rule;
    this.next();
  }

  /** Choose the questions and say how; their candidates are fetched here, once. */
  async plan() {
    const { view } = this;
    const { strayed, hesitated } = quizPlaces(view);
    const kinds = await Promise.all(
      [strayed, hesitated].map(async (places) => {
        const questions = places.slice(0, TRIED * MOST_OF_A_KIND).map(async (place) => {
          const details = await view.fetched.details(place.group, place.sample, place.index, place.review);
          return makeQuestion(place, details, places === strayed);
        });
        return (await Promise.all(questions)).filter(Boolean).slice(0, MOST_OF_A_KIND);
      }),
    );
    const [asStrayed, asHesitated] = kinds.map((questions, kind) =>
      questions.slice(0, Math.max(ANYWAY_OF_A_KIND, kinds[1 - kind].length)),
    );
    const rule =
      `Right is the teacher’s first choice, or what it finds at least ${NEAR_TIE} times as likely. ` +
      `Asked are ${asStrayed.length} where the teacher minds what was said, and ${asHesitated.length} where the ` +
      "student was unsure and the teacher’s first choice was said.";
    return { rule, questions: mixQuestions([...asStrayed, ...asHesitated]) };
  }

  get question() {
    return this.questions?.[this.at];
  }

  /** Who wrote the text: pasted text is nobody's choice. */
  get writer() {
    return this.question.review.off_policy ? "the text" : "the student";
  }

  // -- one question

  next() {
    this.at += 1;
    if (this.question) this.ask();
    else this.sumUp();
    this.parts.title.focus();
  }

  ask() {
    const { parts, question } = this;
    const { review, index, options } = question;
    this.chosen = null;
    parts.title.textContent = `Fork ${this.at + 1} of ${this.questions.length}`;
    parts.asked.textContent = review.question;
    const { longestToken } = this.view.legend;
    const before = Array.from({ length: index }, (_, i) => review.token(i)).map((token) =>
      token.length > longestToken ? `${clipped(token, longestToken)}…` : token,
    );
    this.gap = make("span", "quiz-gap", "?");
    parts.passage.replaceChildren(before.join(""), this.gap);
    parts.options.replaceChildren(
      ...options.map((option, i) => {
        const button = makeButton("", "", () => this.choose(i));
        button.append(make("kbd", "", String(i + 1)), make("code", "", option.text));
        return make("li", "", button);
      }),
    );
    parts.reveal.hidden = parts.next.hidden = true;
    parts.play.hidden = false;
    parts.passage.scrollTop = parts.passage.scrollHeight;
    this.showScore();
    const spokenOptions = options.map(({ text }, i) => `${i + 1}: ${spoken(text)}`).join("; ");
    this.say(`${parts.title.textContent}. What would the teacher say next? ${spokenOptions}.`);
  }

  choose(place) {
    const { parts, question } = this;
    const option = question?.options[place];
    if (!option || this.chosen) return;
    this.chosen = option;
    this.answers.push({ right: option.right, student: question.said.right });
    this.streak = option.right ? this.streak + 1 : 0;
    this.gap.textContent = question.said.text;
    [...parts.options.children].forEach((row, i) => this.revealRow(row, question.options[i]));
    const mark = option.right ? make("span", "verdict right", "✓ right") : make("span", "verdict wrong", "✗ wrong");
    const words = this.explain();
    parts.reveal.replaceChildren(mark, " ", ...words);
    parts.next.textContent = this.at + 1 < this.questions.length ? "Next fork" : "Result";
    parts.reveal.hidden = parts.next.hidden = false;
    this.showScore();
    parts.next.focus();
    parts.next.scrollIntoView({ block: "nearest" });
    this.say([mark.textContent, ...words].map((part) => part.textContent ?? part).join(" "));
  }

  revealRow(row, option) {
    const { chosen, question } = this;
    const tags = [];
    if (option.right) tags.push(option === question.best ? "✓ first choice" : "✓ near tie");
    if (option === chosen) tags.push("yours");
    if (option.sampled) tags.push(`${this.writer}’s`);
    row.firstChild.disabled = true;
    row.classList.toggle("right", option.right);
    row.classList.toggle("chosen", option === chosen);
    row.append(shareBar("student", option.student), shareBar("teacher", option.teacher), make("span", "tags", tags.join(" · ")));
  }

  /** What the teacher wanted and what was said, in one sentence. */
  explain() {
    const { chosen, question, view } = this;
    const { best, said, review, index } = question;
    const name = ({ text }) => make("code", "", text);
    const words = ["The teacher would say ", name(best), ` (${percent(best.teacher)})`];
    if (chosen !== best) {
      const share = chosen.teacher === undefined ? " hardly ever" : ` ${percent(chosen.teacher)} of the time`;
      words.push(chosen.right ? ", nearly tied with " : ", and ", name(chosen), chosen.right ? ` (${percent(chosen.teacher)})` : share);
    }
    const { name: verdict, glyph } = view.legend.verdicts[review.verdicts[index]];
    words.push(`; ${this.writer} said `, said === chosen ? "the same" : name(said), `: ${`${verdict} ${glyph}`.trim()}.`);
    return words;
  }

  // -- the score

  showScore() {
    const { answers, streak, parts } = this;
    const n = answers.length;
    const words = [`you ${rights(answers, "right")} of ${n}`, `${this.writer} ${rights(answers, "student")} of ${n}`];
    if (streak > 1) words.push(`streak ${streak}`);
    parts.score.textContent = n ? words.join(" · ") : "";
  }

  sumUp() {
    const { answers, questions, parts } = this;
    const n = answers.length;
    const right = rights(answers, "right");
    const [low, high] = wilson(right, n).map((share) => (100 * share).toFixed(0));
    const byChance = questions.reduce((sum, { options }) => sum + options.filter((o) => o.right).length / options.length, 0);
    const writer = questions.some(({ review }) => review.off_policy) ? "the text" : "the student";
    this.chosen = null;
    parts.play.hidden = true;
    parts.result.hidden = false;
    parts.score.textContent = "";
    parts.title.textContent = `${right} of ${n} right`;
    parts.result.textContent =
      `You chose as the teacher would at ${right} of ${counted(n, "fork")} (95 % interval ${low} to ${high} %), ` +
      `${writer} at ${rights(answers, "student")}; picking blindly finds ${number(byChance, 1)} on average.`;
    this.say(parts.result.textContent);
  }

  say(words) {
    this.parts.live.textContent = words;
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const place = "12345".indexOf(event.key);
    if (place >= 0 && event.key.length === 1) this.choose(place);
    else if (event.key === "Enter" && this.chosen && !event.target.closest("button")) this.next();
    else return;
    event.preventDefault();
  }
}

const rights = (answers, name) => answers.filter((answer) => answer[name]).length;
