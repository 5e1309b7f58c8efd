/* The card of one token: verdict, sentence, both models' candidates, figures, and what can be done from here. */

import { teacherFavourite } from "./data.js";
import { make, makeButton, partsOf, replaceTerms } from "./dom.js";
import { SIGNALS } from "./signals.js";
import { counted, label, number, percent, shareWords, signed, spoken } from "./words.js";

/** A figure's name, what it is called, and how it is written. @type {[string, string, (value: number) => string][]} */
const FIGURES = [
  ["penalty", "penalty", (value) => `${signed(value)} nats`],
  ["reverse_kl", "reverse KL", (value) => `${number(value)} nats`],
  ["forward_kl", "forward KL", (value) => `${number(value)} nats`],
  ["jsd", "JSD", (value) => `${number(value)} nats`],
  ["drop", "drop D", (value) => number(value)],
  ["blame", "blame B", (value) => number(value)],
  ["agreement", "agreement", percent],
  ["student_entropy", "entropy of the student", (value) => `${number(value)} nats`],
  ["teacher_entropy", "entropy of the teacher", (value) => `${number(value)} nats`],
  ["teacher_rank", "the teacher’s rank", (value) => `${value}`],
];
const LONG_LABEL = 60;

/** Fill a card with the token `index` of a pane. `details` is null where they are not at hand. */
export function fillCard(card, template, pane, index, details) {
  card.replaceChildren(template.content.cloneNode(true));
  const find = partsOf(card);
  const { review, view, units } = pane;
  const text = review.token(index);

  find(".token").textContent = label(text, LONG_LABEL);
  if (text.length > LONG_LABEL) find(".card-head").after(wholeText(text));
  find(".position").textContent = `token ${index + 1} of ${review.count}`;
  const judgement = find(".judgement");
  if (review.judged) judgement.append(make("span", `verdict is-${view.verdictNames[review.verdicts[index]]}`, view.verdictWords(review.verdicts[index])));
  if (review.isUngraded(index)) judgement.append(make("span", "verdict ungraded", "not graded"));
  const fork = pane.forks.indexOf(index);
  if (fork >= 0) judgement.append(make("span", "verdict is-fork", `fork ${fork + 1} ◆`));
  const { branch } = review;
  if (index < (branch?.at ?? 0)) judgement.append(make("span", "verdict", "as before"));
  else if (!review.isOwn(index)) judgement.append(make("span", "verdict", branch.by === "teacher" ? "the teacher’s" : "put here"));

  const say = review.spans ? (found) => spanSentence(review, index, found) : sentence;
  find(".sentence").append(...(details ? say(details) : ["What the models wanted here is not at hand."]));
  if (details) find(".candidates").append(...details.candidates.map(candidateRow), ...unlikely(details));
  else find(".candidates").remove();
  const figures = FIGURES.filter(([name]) => details?.figures[name] !== undefined);
  replaceTerms(find(".figures"), [
    ...figures.map(([name, term, write]) => [term, write(details.figures[name])]),
    ...unitFigure(pane, units.of[index]),
  ]);
}

/** The value of the word, sentence or step around a token, where these are shown. */
function unitFigure({ units, unitValues, view }, unit) {
  if (view.granularity === "token" || Number.isNaN(unitValues[unit])) return [];
  const { label: name, unit: measure } = SIGNALS[view.signal];
  const tokens = counted(units.first[unit + 1] - units.first[unit], "token");
  return [[`${name} of the ${view.granularity} (${tokens})`, `${number(unitValues[unit])} ${measure}`]];
}

/** A token too long for its line: all of it on request. */
function wholeText(text) {
  const whole = make("details", "whole", make("summary", "", `all ${text.length.toLocaleString("en")} characters`));
  whole.addEventListener("toggle", () => whole.append(make("pre", "", text)), { once: true });
  return whole;
}

/** What happened here, in words. */
function sentence({ figures, candidates }) {
  const words = [
    `The student gave this token ${percent(figures.student_share)}, the teacher ${percent(figures.teacher_share)}`,
  ];
  const favourite = teacherFavourite(candidates);
  if (figures.teacher_rank === 1) words.push(": its first choice too.");
  else if (!favourite.sampled) {
    const wish = make("code", "", label(favourite.text));
    words.push(". The teacher would rather say ", wish, ` (${percent(favourite.teacher)}).`);
  } else words.push(`, as its choice number ${figures.teacher_rank}.`);
  return words;
}

/** The same where the teacher, with another tokenizer, graded the span of text that the token is in. */
function spanSentence(review, index, { figures, candidates }) {
  const words = [`The student gave this token ${percent(figures.student_share)}`];
  if (review.isUngraded(index)) return [...words, ". The teacher, which has another tokenizer, does not read it as it stands."];
  const span = review.together(index);
  if (span.length === 1) words.push(`, the teacher ${percent(figures.teacher_share)} to the same text.`);
  else {
    const text = make("code", "", label(span.map((place) => review.token(place)).join("")));
    words.push(". The teacher has another tokenizer: it grades ", text, ` as one, ${signed(figures.penalty * span.length)} nats, `);
    words.push(`of which each of the ${span.length} tokens has an equal share.`);
  }
  const favourite = teacherFavourite(candidates);
  if (span[0] === index && favourite.teacher !== undefined && !favourite.sampled) {
    words.push(" The teacher would rather begin with ", make("code", "", label(favourite.text)), ` (${percent(favourite.teacher)}).`);
  }
  return words;
}

/** The probability that the model `name` gives, as a figure and a bar. */
export function shareBar(name, share) {
  const bar = make("i");
  bar.style.width = `${100 * (share ?? 0)}%`;
  // Beyond a model's list of likeliest tokens its probability is not known, only that it is small.
  const figure = make("span", share === undefined ? "figure unknown" : "figure", shareWords(share));
  if (share === undefined) figure.title = `not among the ${name}'s likeliest tokens`;
  return make("span", `share ${name}`, figure, make("span", "track", bar));
}

function candidateRow({ id, text, student, teacher, sampled }) {
  const name = make("code", "", label(text));
  const row = make("div", sampled ? "candidate sampled" : "candidate", shareBar("student", student), name, shareBar("teacher", teacher));
  row.dataset.token = id;
  return row;
}

/** The rest of both models' lists, folded away. */
function unlikely({ listed, candidates }) {
  const rest = listed.filter((candidate) => !candidates.includes(candidate));
  if (!rest.length) return [];
  return [make("details", "unlikely", make("summary", "", `${rest.length} less likely`), ...rest.map(candidateRow))];
}

/** Add to the pinned card what can be done from here: only what somebody listens to. `target()` says where. */
export function addActions(card, actions, target) {
  const box = card.querySelector(".actions");
  const others = card.querySelectorAll(".candidate[data-token]:not(.sampled)");
  if (actions.branch && others.length) {
    for (const row of others) {
      const name = row.querySelector("code");
      const text = name.textContent;
      const button = makeButton("go-on", "", () => actions.branch({ ...target(), token: Number(row.dataset.token) }));
      button.title = button.ariaLabel = `Let the student go on from here with ${text}`;
      name.replaceWith(button);
      button.append(name);
    }
    box.append(make("p", "hint", "Press a candidate to let the student go on from here with it."));
  }
  if (actions.typed) {
    const input = make("input");
    Object.assign(input, { type: "text", placeholder: "Go on with your own text", ariaLabel: "Text to go on with" });
    const form = make("form", "typed", input, make("button", "pill", "Go on"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (input.value) actions.typed({ ...target(), text: input.value });
    });
    box.append(form);
  }
  const whole = () => {
    const { index, ...text } = target();
    return text;
  };
  const buttons = [
    ["teacherLine", "Teacher’s line", "How the teacher itself would go on from before this token", target],
    ["forkValue", "Fork value", "Does this choice decide the answer? Both go on many times and are counted", target],
    ["noReturn", "Point of no return", "Where along the whole text a right answer gets out of reach", whole],
  ]
    .filter(([name]) => actions[name])
    .map(([name, text, title, about]) => {
      const button = makeButton("pill act", text, () => actions[name](about()));
      button.title = title;
      return button;
    });
  if (buttons.length) box.append(make("div", "buttons", ...buttons));
  box.hidden = !box.childElementCount;
}

/** What the live region says of a token. */
export function announcement(pane, index, details) {
  const { review, view } = pane;
  const words = [`token ${index + 1}`, `“${spoken(label(review.token(index)))}”`];
  if (review.judged) words.push(view.verdictNames[review.verdicts[index]]);
  if (pane.forks.includes(index)) words.push("fork");
  if (review.isUngraded(index)) words.push("not graded");
  else words.push(`penalty ${signed(details?.figures.penalty ?? review.penalty[index])}`);
  const favourite = details && teacherFavourite(details.candidates);
  if (favourite?.teacher !== undefined && !favourite.sampled) {
    words.push(`teacher prefers “${spoken(label(favourite.text))}”, ${percent(favourite.teacher)}`);
  }
  return words.join(", ");
}
