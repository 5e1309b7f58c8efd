/* The dry run: findings, costs, and the tokens that the first step would push. */

import { make, partsOf } from "../view/js/dom.js";
import { SortableTable, around, numeric, rowButton, wordy } from "../view/js/table.js";
import { number } from "../view/js/words.js";

const root = element.querySelector(".dry-run");
const find = partsOf(root);
let key = null; // of the set of completions that is shown

const tables = ["punished", "rewarded"].map((kind) => {
  const figure = find(`[data-kind=${kind}]`);
  const columns = [
    numeric("advantage", "advantage", 2, {
      rising: kind === "punished",
      cell: ({ advantage }) => rowButton(number(advantage), "Read the completion"),
    }),
    wordy("context", "token in its text", around, { value: ({ token }) => token }),
    wordy("choice", "teacher’s choice"),
  ];
  return { kind, figure, table: new SortableTable(figure.querySelector(".table"), columns, { act: ({ review }) => trigger("token", { key, review }) }) };
});

function findingLine({ level, check, message }) {
  const line = make("li", "", make("b", "", `${check} `), message);
  line.dataset.level = level;
  return line;
}

function showValue() {
  root.hidden = !props.value;
  if (!props.value) return;
  const value = JSON.parse(props.value);
  key = value.key;
  const passed = value.findings.filter(({ level }) => level === "pass");
  find(".findings").replaceChildren(...value.findings.filter((finding) => !passed.includes(finding)).map(findingLine));
  find(".fine").hidden = !passed.length;
  find(".fine summary").textContent = `${passed.length} of ${value.findings.length} checks passed`;
  find(".fine ul").replaceChildren(...passed.map(findingLine));
  find(".facts").replaceChildren(...(value.facts ?? []).map((fact) => make("li", "", fact)));
  for (const { kind, figure, table } of tables) {
    const tokens = value[kind] ?? [];
    figure.hidden = !tokens.length;
    table.show(tokens);
  }
}

watch("value", showValue);
showValue();
