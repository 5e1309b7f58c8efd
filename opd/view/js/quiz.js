/*
 * The quiz's dialog: it draws the state that the game is in. It is modal and covers the page, so that nothing behind it
 * can give the teacher away and everything is as it was when it closes.
 */

import { shareBar } from "./card.js";
import { make, makeButton, partsOf } from "./dom.js";
import { wilson } from "./evidence.js";
import { Game } from "./game.js";
import { MOST_OF_A_KIND, NEAR_TIE, TRIED, evenOut, makeQuestion, mixQuestions, quizPlaces, strayedForks } from "./questions.js";
import { counted, number, percent, shortened, spoken } from "./words.js";

const NOTHING = "There is nothing to ask: no fork has candidates at hand that differ enough.";

export class Quiz {
  constructor(view, dialog, button) {
    this.view = view;
    this.dialog = dialog;
    this.button = button;
    this.part = partsOf(dialog);
    this.game = new Game();
    button.addEventListener("click", () => this.open());
    this.part(".quiz-leave").addEventListener("click", () => dialog.close());
    this.part(".quiz-next").addEventListener("click", () => this.next());
    dialog.addEventListener("close", () => (this.game = new Game()));
    dialog.addEventListener("keydown", (event) => this.press(event));
  }

  /** Offer the quiz where there is a fork to ask about. */
  offer() {
    const isFork = (review) => strayedForks(this.view, review).length > 0;
    this.button.hidden = !this.view.groups.some(({ reviews }) => reviews.some(isFork));
  }

  // -- the game

  async open() {
    const game = (this.game = new Game());
    game.go("open");
    this.draw();
    this.dialog.showModal();
    const { rule, questions } = await this.plan();
    if (this.game !== game) return; // closed meanwhile
    game.deal(questions);
    this.part(".quiz-rule").textContent = questions.length ? rule : "";
    this.draw();
  }

  /** Choose the questions and say how; their candidates are fetched here, once. */
  async plan() {
    const { strayed, hesitated } = quizPlaces(this.view);
    const [asStrayed, asHesitated] = evenOut(await this.ask(strayed, true), await this.ask(hesitated, false));
    const rule =
      `Right is the teacher’s first choice, or what it finds at least ${NEAR_TIE} times as likely. ` +
      `Asked are ${asStrayed.length} where the teacher minds what was said, and ${asHesitated.length} where the ` +
      "student was unsure and the teacher’s first choice was said.";
    return { rule, questions: mixQuestions([...asStrayed, ...asHesitated]) };
  }

  /** The questions at some places of one kind. */
  async ask(places, strayed) {
    const questions = places.slice(0, TRIED * MOST_OF_A_KIND).map(async (place) => {
      const details = await this.view.fetched.details(place.group, place.sample, place.index, place.review);
      return makeQuestion(place, details, strayed);
    });
    return (await Promise.all(questions)).filter(Boolean).slice(0, MOST_OF_A_KIND);
  }

  choose(place) {
    if (this.game.choose(place)) this.draw();
  }

  next() {
    this.game.next();
    this.draw();
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const place = "12345".indexOf(event.key);
    if (place >= 0 && event.key.length === 1) this.choose(place);
    else if (event.key === "Enter" && this.game.state === "answered" && !event.target.closest("button")) this.next();
    else return;
    event.preventDefault();
  }

  get question() {
    return this.game.question;
  }

  get questions() {
    return this.game.questions;
  }

  // -- the states, drawn

  draw() {
    const { state } = this.game;
    this.part(".quiz-play").hidden = !this.question;
    this.part(".quiz-result").hidden = state !== "over";
    for (const name of [".quiz-reveal", ".quiz-next"]) this.part(name).hidden = state !== "answered";
    this.part(".quiz-score").textContent = this.question ? this.scoreWords() : "";
    this[state]();
    if (state !== "answered") this.part(".quiz-title").focus();
  }

  looking() {
    this.part(".quiz-title").textContent = "Looking for forks …";
    this.part(".quiz-rule").textContent = "";
  }

  empty() {
    this.part(".quiz-title").textContent = NOTHING;
    this.say(NOTHING);
  }

  asking() {
    const { game, part, view } = this;
    const { review, index, options } = this.question;
    const title = `Fork ${game.at + 1} of ${game.questions.length}`;
    part(".quiz-title").textContent = title;
    part(".quiz-asked").textContent = review.question;
    const before = Array.from({ length: index }, (_, i) => shortened(review.token(i), view.legend.longestToken));
    part(".quiz-passage").replaceChildren(before.join(""), make("span", "quiz-gap", "?"));
    part(".quiz-passage").scrollTop = part(".quiz-passage").scrollHeight;
    part(".quiz-options").replaceChildren(
      ...options.map((option, i) => {
        const button = makeButton("", "", () => this.choose(i));
        button.append(make("kbd", "", String(i + 1)), make("code", "", option.text));
        return make("li", "", button);
      }),
    );
    const spokenOptions = options.map(({ text }, i) => `${i + 1}: ${spoken(text)}`).join("; ");
    this.say(`${title}. What would the teacher say next? ${spokenOptions}.`);
  }

  answered() {
    const { game, part, question } = this;
    part(".quiz-gap").textContent = question.said.text;
    [...part(".quiz-options").children].forEach((row, i) => this.revealRow(row, question.options[i]));
    const mark = game.chosen.right ? make("span", "verdict right", "✓ right") : make("span", "verdict wrong", "✗ wrong");
    const words = this.explain();
    part(".quiz-reveal").replaceChildren(mark, " ", ...words);
    const next = part(".quiz-next");
    next.textContent = game.isLast ? "Result" : "Next fork";
    next.focus();
    next.scrollIntoView({ block: "nearest" });
    this.say([mark, ...words].map((part) => part.textContent ?? part).join(" "));
  }

  over() {
    const { mine, students, byChance } = this.game.score;
    const n = this.game.answers.length;
    const [low, high] = wilson(mine, n).map((share) => (100 * share).toFixed(0));
    const writer = writerOf(this.questions.map(({ review }) => review));
    const words =
      `You chose as the teacher would at ${mine} of ${counted(n, "fork")} (95 % interval ${low} to ${high} %), ` +
      `${writer} at ${students}; picking blindly finds ${number(byChance, 1)} on average.`;
    this.part(".quiz-title").textContent = `${mine} of ${n} right`;
    this.part(".quiz-result").textContent = words;
    this.say(words);
  }

  revealRow(row, option) {
    const { question, game } = this;
    const tags = [];
    if (option.right) tags.push(option === question.best ? "✓ first choice" : "✓ near tie");
    if (option === game.chosen) tags.push("yours");
    if (option.sampled) tags.push(`${writerOf([question.review])}’s`);
    row.firstChild.disabled = true;
    row.classList.toggle("right", option.right);
    row.classList.toggle("chosen", option === game.chosen);
    row.append(shareBar("student", option.student), shareBar("teacher", option.teacher), make("span", "tags", tags.join(" · ")));
  }

  /** What the teacher wanted and what was said, in one sentence. */
  explain() {
    const { chosen } = this.game;
    const { best, said, review, index } = this.question;
    const name = ({ text }) => make("code", "", text);
    const words = ["The teacher would say ", name(best), ` (${percent(best.teacher)})`];
    if (chosen !== best) {
      const share = chosen.teacher === undefined ? " hardly ever" : ` ${percent(chosen.teacher)} of the time`;
      words.push(chosen.right ? ", nearly tied with " : ", and ", name(chosen), chosen.right ? ` (${percent(chosen.teacher)})` : share);
    }
    const verdict = this.view.verdictWords(review.verdicts[index]);
    words.push(`; ${writerOf([review])} said `, said === chosen ? "the same" : name(said), `: ${verdict}.`);
    return words;
  }

  scoreWords() {
    const { answers, score, streak } = this.game;
    const n = answers.length;
    if (!n) return "";
    const words = [`you ${score.mine} of ${n}`, `${writerOf([this.question.review])} ${score.students} of ${n}`];
    if (streak > 1) words.push(`streak ${streak}`);
    return words.join(" · ");
  }

  say(words) {
    this.part(".quiz-live").textContent = words;
  }
}

/** Who wrote some texts: pasted text is nobody's choice. */
const writerOf = (reviews) => (reviews.some((review) => review.off_policy) ? "the text" : "the student");
