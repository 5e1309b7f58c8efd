/* All runs. */

import { delayed, make, makeButton, partsOf } from "../view/js/dom.js";
import { SortableTable, wordy } from "../view/js/table.js";
import { counted, moment, number } from "../view/js/words.js";
import { Poll } from "./poll.js";

const POLL_MS = 5000;
const TYPING_MS = 200;
const root = element.querySelector(".run-table");
const find = partsOf(root);
const search = find("[type=search]");
let chosen = [];
let choices = valueOf()?.choice ?? 0; // counts them: what answers an older one is not what is chosen now
let drawn = ""; // what is in the table
let asked = 0; // counts the questions: late answers to older ones are dropped

function valueOf() {
  return JSON.parse(props.value || "null");
}

const accuracy = (share) => `${number(100 * share, 1)} %`;

function bestOf({ best_kl: kl, best_accuracy: best, teacher_accuracy: teacher }) {
  const words = best !== null ? accuracy(best) : kl !== null ? `KL ${number(kl, 3)}` : "";
  return words && teacher !== null ? `${words} of ${accuracy(teacher)}` : words;
}

function boxOf({ name }) {
  const box = Object.assign(make("input"), { type: "checkbox", checked: chosen.includes(name), ariaLabel: `Choose ${name}` });
  box.addEventListener("click", (event) => event.stopPropagation()); // its row would turn it back
  box.addEventListener("change", () => choose(name, box.checked));
  return box;
}

function openButton({ name }) {
  return makeButton("pill", "Open", (event) => {
    event.stopPropagation(); // its row would be chosen
    trigger("open", { run: name });
  });
}

/** A run that cannot be read says what is wrong with it where its note stands. */
const noteCell = ({ note, fault }) => Object.assign(make("span", fault ? "fault" : "", fault || note), { title: fault || note });
/** Of such a run there are no figures. */
const ofReadable = (words) => (run) => (run.fault ? "" : words(run));

const table = new SortableTable(
  find(".table"),
  [
    { name: "choose", head: "", value: () => null, cell: boxOf },
    wordy("name", "Run", ({ name, baseline }) => name + (baseline ? " ★" : "")),
    wordy("state", "State", ({ state, alarmed }) => state + (alarmed ? " ⚠" : "")),
    { name: "step", head: "Step", value: ({ step }) => step, cell: ofReadable(({ step, steps }) => `${step} / ${steps}`) },
    { name: "best", head: "Best", value: ({ best_accuracy: best, best_kl: kl }) => best ?? (kl === null ? null : -kl), cell: ofReadable(bestOf) },
    wordy("objective", "Objective", ofReadable(({ objective, race }) => objective + (race ? `, race ${race}` : ""))),
    wordy("pair", "Pair", ofReadable(({ student, teacher }) => `${student} ← ${teacher}`), { value: ({ student }) => student }),
    wordy("started", "Started", ({ started }) => moment(started), { rising: false }),
    wordy("note", "Note", noteCell),
    { name: "open", head: "", value: () => null, cell: (run) => (run.fault ? "" : openButton(run)) },
  ],
  {
    act: ({ name }) => find(`[data-run="${name}"] [type=checkbox]`).click(),
    dress: (row, { name }) => (row.dataset.run = name),
  },
);
table.mark(({ name }) => chosen.includes(name));

function choose(name, wanted) {
  chosen = chosen.filter((other) => other !== name);
  if (wanted) chosen.push(name);
  table.mark();
  trigger("choose", { runs: chosen, choice: ++choices });
}

/** Read the list; returns when to read it again. */
async function read() {
  const mine = ++asked;
  const runs = await server.runs(search.value);
  if (mine !== asked || !runs) return POLL_MS;
  const fresh = JSON.stringify([runs, chosen]);
  if (fresh !== drawn) {
    table.show(runs);
    find(".empty").hidden = runs.length > 0 || Boolean(search.value);
    find(".count").textContent = `${counted(runs.length, "run")}. ★ is the baseline; ⚠ ended with an alarm.`;
  }
  drawn = fresh;
  return POLL_MS;
}

const poll = new Poll(root, read);
search.addEventListener("input", delayed(() => poll.start(), TYPING_MS));

function showValue() {
  const value = valueOf();
  if (value && (value.choice ?? choices) === choices) chosen = value.chosen;
  poll.start();
}

watch("value", showValue);
showValue();
