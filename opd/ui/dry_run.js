/* The dry run. `element`, `props`, `trigger` and `watch` are given to this script by Gradio. */
const root = element.querySelector(".dry-run");
const find = (selector) => root.querySelector(selector);
const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

function showValue() {
  root.hidden = !props.value;
  if (!props.value) return;
  const { key, findings, facts = [], punished = [], rewarded = [] } = JSON.parse(props.value);
  const lines = findings.map(({ level, check, message }) => {
    const line = document.createElement("li");
    line.dataset.level = level;
    line.append(make("b", `${check} `), message);
    return line;
  });
  const fine = lines.filter((line) => line.dataset.level === "pass");
  find(".findings").replaceChildren(...lines.filter((line) => !fine.includes(line)));
  find(".fine").hidden = !fine.length;
  find(".fine summary").textContent = `${fine.length} of ${lines.length} checks passed`;
  find(".fine ul").replaceChildren(...fine);
  find(".facts").replaceChildren(...facts.map((fact) => make("li", fact)));
  fill("punished", punished, key);
  fill("rewarded", rewarded, key);
}

function fill(kind, tokens, key) {
  const figure = find(`[data-kind=${kind}]`);
  figure.hidden = !tokens.length;
  figure.querySelector("table").replaceChildren(...tokens.map((token) => rowOf(token, key)));
}

function rowOf({ before, text, after, advantage, choice, review }, key) {
  const row = document.createElement("tr");
  const context = document.createElement("td");
  context.append(make("i", before), make("b", text), make("i", after));
  context.dir = "ltr";
  row.append(make("td", advantage.toFixed(2)), context, make("td", choice));
  row.tabIndex = 0;
  row.title = "Read the completion";
  row.addEventListener("click", () => trigger("token", { key, review }));
  row.addEventListener("keydown", (event) => event.key === "Enter" && trigger("token", { key, review }));
  return row;
}

watch("value", showValue);
showValue();
