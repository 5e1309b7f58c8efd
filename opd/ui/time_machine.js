/* A run's probes through time. */

import { Picture, heatLevel, readColours } from "../view/js/colour.js";
import { delayed, make, onRecolour, partsOf } from "../view/js/dom.js";
import { IDLE_MS, Poll } from "./poll.js";

const STEPS = props.heat; // where each step of the ramp begins, nats
const RAMP = [0, ...STEPS].map((_, level) => `dislike-${level}`);
const HURTS = 0.5; // nats: what a token must cost to count as a wound
const POLL_MS = 3000;
const LOOK_MS = 250;
const ROW_HEIGHT = { most: 22, least: 2, all: 300 }; // CSS pixels

const root = element.querySelector(".time-machine");
const find = partsOf(root);
const canvas = find("canvas");
const slider = find("[type=range]");
let shown = null; // { run, probe, steps, kl, pieces, first, at }; replaced for another run or probe

function drawBarcode() {
  const { steps, kl, at } = shown;
  if (!steps.length) return;
  const { most, least, all } = ROW_HEIGHT;
  const height = Math.max(least, Math.min(most, Math.floor(all / steps.length)));
  const columns = Math.max(...kl.map((row) => row.length));
  const marker = 6; // pixels at the left that mark the row of the scrubber
  const tall = height - (height > 4 ? 1 : 0);
  canvas.style.height = `${height * steps.length}px`;
  const picture = new Picture(canvas);
  const colours = readColours(root, ["ink", ...RAMP]);
  const width = (picture.width - 2 * marker) / columns;
  kl.forEach((row, y) => {
    row.forEach((value, x) => {
      picture.area(colours[RAMP[heatLevel(value, STEPS)]], 2 * marker + x * width, y * height, width + 0.5, tall);
    });
  });
  picture.area(colours.ink, 0, at * height, marker, tall);
}

function drawScale() {
  const names = [`< ${STEPS[0]}`, ...STEPS.map((from) => `≥ ${from}`)];
  find(".scale").replaceChildren(
    "KL, nats:",
    ...names.map((words, level) => {
      const patch = make("i");
      patch.style.setProperty("--step", `var(--${RAMP[level]})`);
      return make("span", "", patch, words);
    }),
  );
}

function changeOf(before, now) {
  if (before >= HURTS) return now >= HURTS ? "hurting" : "healed";
  return now >= HURTS ? "new" : null;
}

async function drawText() {
  const mine = shown;
  const { at, steps } = mine;
  if (!steps.length) return;
  mine.pieces ??= await server.text(mine.run, mine.probe);
  mine.first ??= await server.kl_at(mine.run, mine.probe, steps[0]);
  const now = await server.kl_at(mine.run, mine.probe, steps[at]);
  if (shown !== mine || mine.at !== at || !now || !mine.first || !mine.pieces) return;
  const counts = { healed: 0, hurting: 0, new: 0 };
  const marks = mine.pieces.map((piece, i) => {
    const change = changeOf(mine.first[i], now[i]);
    const mark = make("mark", "", piece);
    mark.title = `KL ${mine.first[i].toFixed(2)} → ${now[i].toFixed(2)} nats`;
    if (change) {
      mark.dataset.change = change;
      counts[change] += 1;
    }
    return mark;
  });
  find(".text").replaceChildren(...marks);
  const words = { healed: "healed", hurting: "still hurting", new: "new" };
  find(".change").replaceChildren(
    make("b", "", `Step ${steps[0]} against step ${steps[at]} `),
    "The same text; a token hurts from ", `${HURTS} nats on. `,
    ...Object.entries(words).flatMap(([change, word]) => {
      const key = make("mark", "", `${counts[change]} ${word}`);
      key.dataset.change = change;
      return [key, " "];
    }),
  );
}

function goTo(at) {
  shown.at = Math.max(0, Math.min(at, shown.steps.length - 1));
  slider.max = Math.max(0, shown.steps.length - 1);
  slider.value = shown.at;
  find("output").textContent = shown.steps[shown.at] ?? "";
  slider.setAttribute("aria-valuetext", `step ${shown.steps[shown.at]}`);
  drawBarcode();
  drawText();
}

/** Ask for evaluations that are new; returns when to ask again. */
async function askForMore() {
  const mine = shown;
  if (!mine.prompts?.length) {
    mine.prompts = await server.prompts(mine.run);
    if (shown !== mine) return POLL_MS;
    find(".probe").replaceChildren(
      ...(mine.prompts ?? []).map((prompt, i) => new Option(`${i + 1}. ${prompt.replaceAll("↵\n", " ")}`, String(i))),
    );
    root.hidden = !mine.prompts?.length;
  }
  const news = await server.barcode(mine.run, mine.probe, mine.steps.at(-1) ?? -1);
  if (shown !== mine) return POLL_MS;
  if (!news) return mine.prompts === null ? 0 : POLL_MS;
  const wasNewest = mine.at >= mine.steps.length - 1;
  mine.steps.push(...news.steps);
  mine.kl.push(...news.kl);
  if (news.steps.length) goTo(wasNewest ? mine.steps.length - 1 : mine.at);
  return news.live ? POLL_MS : IDLE_MS;
}

// What is not yet to be seen has no place on the page: its parent says whether the tab is looked at.
const poll = new Poll(element, askForMore);

function follow(run, probe = 0) {
  const prompts = shown?.run === run ? shown.prompts : null;
  root.hidden = !prompts;
  shown = { run, probe, prompts, steps: [], kl: [], pieces: null, first: null, at: 0 };
  poll.start();
}

const look = () => trigger("look", { run: shown.run, step: shown.steps[shown.at], probe: shown.probe });
const lookSoon = delayed(look, LOOK_MS);
slider.addEventListener("input", () => {
  goTo(Number(slider.value));
  if (shown.looked) lookSoon(); // the answers follow the scrubber once they have been asked for
});
find(".look").addEventListener("click", () => {
  shown.looked = true;
  look();
});
find(".probe").addEventListener("change", (event) => follow(shown.run, Number(event.target.value)));
canvas.addEventListener("click", ({ offsetY }) => {
  goTo(Math.floor((offsetY / canvas.clientHeight) * shown.steps.length));
});
canvas.addEventListener("keydown", ({ key }) => {
  const by = { ArrowUp: -1, ArrowDown: 1 }[key];
  if (by) goTo(shown.at + by);
});
const redraw = () => shown && drawBarcode();
new ResizeObserver(redraw).observe(canvas.parentElement);
onRecolour(redraw);

function showValue() {
  const { run } = JSON.parse(props.value || "{}");
  if (run && run !== shown?.run) follow(run);
  else if (run) poll.start();
}

drawScale();
watch("value", showValue);
showValue();
