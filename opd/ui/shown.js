/*
 * What is shown: its title and note, its link, its files. The page's query follows what is shown, so that a copied
 * address opens it again.
 */

import { copyText, make, partsOf, setQuery } from "../view/js/dom.js";

const part = partsOf(element);
const say = (words) => (part(".status").textContent = words);
let shown = null;
let saving = false; // until it is answered

function showValue() {
  if (!props.value) return;
  const before = shown;
  shown = JSON.parse(props.value);
  part(".opd-shown").hidden = false;
  part("h2").textContent = shown.title ?? "";
  part(".words p").textContent = shown.note ?? "";
  part(".link").hidden = !shown.id;
  part(".keep").hidden = Boolean(shown.id); // it is kept already
  const another = before?.key !== shown.key || before?.id !== shown.id;
  if (another || saving) say("");
  saving = false;
  if (!another) return;
  setQuery("review", shown.id);
  part(".link input").value = location.href;
}

async function download(kind) {
  say("Making the file …");
  // A server function that fails resolves to undefined.
  const file = await server.file_of(shown.key, kind);
  if (!file) {
    say("This is no longer at hand. Please sample or open it anew.");
    return;
  }
  const address = URL.createObjectURL(new Blob([file.text], { type: file.type }));
  Object.assign(make("a"), { href: address, download: file.name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  say("");
}

async function copyLink() {
  const input = part(".link input");
  input.value = location.href; // the token that is pinned by now
  input.select();
  say((await copyText(input.value)) ? "The link is copied." : "Copy the link from the box.");
}

part(".keep").addEventListener("click", () => {
  saving = true;
  say("Saving …");
  trigger("keep");
});
part(".copy").addEventListener("click", copyLink);
part(".link input").addEventListener("focus", (event) => {
  event.target.value = location.href;
  event.target.select();
});
for (const button of element.querySelectorAll("[data-kind]")) {
  button.addEventListener("click", () => download(button.dataset.kind));
}
watch("value", showValue);
showValue();
