/*
 * All runs. `element`, `props`, `trigger`, `server` and `watch` are given to this script by Gradio; curves.js
 * stands before it.
 */
const POLL_MS = 5000;
const root = element.querySelector(".run-table");
const find = (selector) => root.querySelector(selector);
const search = find("[type=search]");
let chosen = [];
let asked = 0; // counts the questions: late answers to older ones are dropped

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function cell(text, className = "") {
  return Object.assign(document.createElement("td"), { textContent: text, className });
}

function rowOf(run) {
  const row = document.createElement("tr");
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: chosen.includes(run.name) });
  box.setAttribute("aria-label", `Choose ${run.name}`);
  box.addEventListener("change", () => choose(run.name, box.checked));
  const first = document.createElement("td");
  first.append(box);
  const kl = run.best_kl === null ? "" : `KL ${run.best_kl.toFixed(3)}`;
  const best = run.best_accuracy === null ? kl : percent(run.best_accuracy);
  const teacher = run.teacher_accuracy === null ? "" : ` of ${percent(run.teacher_accuracy)}`;
  const open = Object.assign(document.createElement("button"), { type: "button", textContent: "Open" });
  open.addEventListener("click", (event) => {
    event.stopPropagation();
    trigger("open", { run: run.name });
  });
  const last = document.createElement("td");
  if (!run.fault) last.append(open);
  row.dataset.run = run.name;
  const figures = [
    cell(`${run.step} / ${run.steps}`, "number"),
    cell(best && best + teacher, "number"),
    cell(run.objective + (run.race ? `, race ${run.race}` : "")),
    cell(`${run.student} ← ${run.teacher}`, "pair"),
  ];
  row.append(
    first,
    cell(run.name + (run.baseline ? " ★" : "")),
    cell(run.state + (run.alarmed ? " ⚠" : "")),
    ...(run.fault ? [Object.assign(cell(run.fault, "fault"), { colSpan: 4, title: run.fault })] : figures),
    cell(new Date(1000 * run.started).toLocaleString([], { dateStyle: "short", timeStyle: "short" })),
    cell(run.note, "note"),
    last,
  );
  row.addEventListener("click", ({ target }) => target !== box && box.click());
  return row;
}

function choose(name, wanted) {
  chosen = chosen.filter((other) => other !== name);
  if (wanted) chosen.push(name);
  trigger("choose", { runs: chosen });
}

/** Read the list; returns when to read it again. */
async function read() {
  const mine = ++asked;
  const runs = await server.runs(search.value);
  if (mine !== asked || !runs) return POLL_MS;
  const drawn = JSON.stringify([runs, chosen]);
  if (drawn !== root.dataset.drawn) {
    find("tbody").replaceChildren(...runs.map(rowOf));
    find(".empty").hidden = runs.length > 0 || Boolean(search.value);
    find(".count").textContent = `${runs.length} ${runs.length === 1 ? "run" : "runs"}. ★ is the baseline; ⚠ ended with an alarm.`;
  }
  root.dataset.drawn = drawn;
  return POLL_MS;
}

const poll = new Poll(root, read);
let typed = 0;
search.addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => poll.start(), 200);
});

function showValue() {
  if (props.value) chosen = JSON.parse(props.value).chosen;
  poll.start();
}

watch("value", showValue);
showValue();
