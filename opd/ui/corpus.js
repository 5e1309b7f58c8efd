/*
 * Many trajectories at once: tabs, filters, and what is asked of the server: the open tab, while it is open.
 *
 * On the page it talks with the token review component only: "opd-shown" says what is shown there, "opd-open" opens a
 * place in it (opd/ui/token_review.js).
 */

import { delayed, onRecolour, partsOf } from "../view/js/dom.js";
import { around } from "../view/js/table.js";
import { figure, shareWords } from "../view/js/words.js";
import { TokenMap } from "./corpus_map.js";
import { TokenList, placeWords, swapTable, swapWords, tokenTable, trajectoryTable, verdictWords } from "./corpus_tables.js";

const GROWTH_MS = 800; // a growing set is not asked for more often
const TYPING_MS = 200;
const GONE = "These trajectories are no longer at hand. Please sample or open them anew.";
const NO_PLOT = "The plot could not be loaded. The buttons list its tokens all the same.";
const NOTHING = {
  table: "No trajectory is like that.",
  worst: "No token like that has a penalty.",
  swaps: "There is nothing like that to swap.",
  map: "No token is like that.",
};

const root = element.querySelector(".opd-corpus");
const find = partsOf(root);
const { legend } = props;
const fold = find("details");
const tabs = [...root.querySelectorAll("[role=tab]")];
let shown = null; // { key, growing, labels, reviews, words }: what the component shows; words: how much there is
let tab = "table";
let turn = 0; // late answers to older questions are dropped
let growth = null; // the timer of refreshSoon

const isOpen = (name) => tab === name && fold.open && !root.hidden;
const say = (words) => (find(".status").textContent = words);

/** Show a place in the component above. */
function open({ group, sample, index = null }) {
  document.dispatchEvent(new CustomEvent("opd-open", { detail: { key: shown.key, group, sample, token: index } }));
}

const tokensAt = (places) => server.tokens(shown.key, places.slice(0, legend.listed));
const makeTokenTable = (place) => tokenTable(place, legend, () => shown, open);
const listIn = (name, onClose) =>
  new TokenList(find(`#corpus-${name} .selection`), find("template"), makeTokenTable, tokensAt, onClose);

const trajectories = trajectoryTable(find("#corpus-table .table"), () => shown, open);
const worst = makeTokenTable(find("#corpus-worst .table"));
const swapList = listIn("swaps", () => swapList.close());
const swaps = swapTable(find("#corpus-swaps .table"), (swap) => {
  const times = swap.count === 1 ? "once" : `${swap.count} times`;
  swapList.show(`${swapWords(swap)}, ${times}, ${shareWords(swap.share)} of the penalty`, swap.places, GONE);
});
const mapList = listIn("map", () => {
  unlistMap();
  map.select(null);
});
const map = new TokenMap(find("#corpus-map"), legend, {
  isOpen: () => isOpen("map"),
  list: (words, places) => mapList.show(words, places, GONE).then(() => map.resize()),
  unlist: unlistMap,
  open,
  point: sayPointed,
});

function unlistMap() {
  mapList.close();
  map.press(null);
  map.resize();
}

/** Say below the map which token the pointer is on. */
async function sayPointed(place) {
  const { data } = map;
  const [token] = (await tokensAt([place])) ?? [];
  if (!token || map.data !== data) return;
  const figures = `entropy ${figure(token.entropy)}, reverse KL ${figure(token.kl)}, ${verdictWords(token.verdict, legend)}`;
  find(".pointed").replaceChildren(`${placeWords(token, shown)}  `, around(token), `  ${figures}`);
}

/** Close all lists, as when other tokens are asked for. */
function unlistAll() {
  swapList.close();
  unlistMap();
}

/** Draw a tab; how much there is to see in it. */
const DRAW = {
  table({ rows, prompts }) {
    trajectories.hide([...(shown.labels.length > 1 ? [] : ["student"]), ...(prompts ? [] : ["prompt"])]);
    trajectories.show(rows);
    return rows.length;
  },
  worst({ rows }) {
    worst.show(rows);
    return rows.length;
  },
  swaps({ rows, found }) {
    find(".cut").textContent = rows.length < found ? `Shown are the first ${rows.length} of ${found.toLocaleString("en")}.` : "";
    swaps.show(rows);
    return rows.length;
  },
  map(data) {
    map.show(data).then((drawn) => drawn || say(NO_PLOT));
    return data.found;
  },
};

const field = (name) => find(`[name=${name}]`);

function question() {
  const least = field("blame").valueAsNumber;
  return {
    group: field("group").value === "" ? null : Number(field("group").value),
    correct: { right: true, wrong: false }[field("correct").value] ?? null,
    verdicts: field("verdicts").value,
    text: field("text").value.trim(),
    blame: Number.isFinite(least) ? least : legend.blame,
  };
}

async function refresh() {
  if (!shown || !fold.open || root.hidden) return;
  const mine = ++turn;
  const asked = tab;
  // A server function that fails resolves to undefined.
  const data = await server.tab(shown.key, asked, question());
  if (mine !== turn) return;
  find(`#corpus-${asked}`).hidden = !data;
  if (!data) say(GONE);
  else say(DRAW[asked](data) ? "" : NOTHING[asked]);
}

/** Ask again a moment later, however often this is called meanwhile. */
function refreshSoon() {
  growth ??= setTimeout(() => {
    growth = null;
    refresh();
  }, GROWTH_MS);
}

function choose(name) {
  tab = name;
  for (const button of tabs) {
    const mine = button.id === `corpus-tab-${name}`;
    button.ariaSelected = String(mine);
    button.tabIndex = mine ? 0 : -1;
    find(`#${button.getAttribute("aria-controls")}`).hidden = !mine;
  }
  refresh();
}

/** Follow what the component shows. */
function follow(state) {
  const before = shown;
  shown = state;
  root.hidden = state.reviews < 2;
  find(".count").textContent = state.words;
  if (before?.labels.join() !== state.labels.join()) offerGroups(state.labels);
  if (before?.key === state.key) {
    refreshSoon();
    return;
  }
  unlistAll();
  refresh();
}

function offerGroups(labels) {
  field("group").replaceChildren(new Option("all students", ""), ...labels.map((text, i) => new Option(text, String(i))));
  field("group").hidden = labels.length < 2;
}

for (const button of tabs) {
  button.addEventListener("click", () => choose(button.id.replace("corpus-tab-", "")));
  button.addEventListener("keydown", ({ key }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    if (!step) return;
    const next = tabs.at((tabs.indexOf(button) + step) % tabs.length);
    next.focus();
    next.click();
  });
}
const refreshOnceTyped = delayed(refresh, TYPING_MS);
for (const name of ["group", "correct", "verdicts", "text", "blame"]) {
  field(name).addEventListener("input", () => {
    unlistAll();
    if (["text", "blame"].includes(name)) refreshOnceTyped();
    else refresh();
  });
}
field("blame").value = legend.blame;
find(".most").textContent = String(legend.listed);
find(".minded").textContent = String(legend.blame);
fold.addEventListener("toggle", refresh);
onRecolour(() => map.redraw());
document.addEventListener("opd-shown", (event) => follow(/** @type {CustomEvent} */ (event).detail));
choose(tab);
document.dispatchEvent(new CustomEvent("opd-ask")); // the component may have been there before
