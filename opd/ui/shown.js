/*
 * What is shown: its title and note, its link, its files. `element`, `props`, `trigger`, `server` and `watch` are
 * given to this script by Gradio. The page's query follows what is shown, so that a copied address opens it again.
 */
const part = (selector) => element.querySelector(selector);
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
  if (another) followId();
}

function followId() {
  const query = new URLSearchParams(location.search);
  if (shown.id) query.set("review", shown.id);
  else query.delete("review");
  history.replaceState(history.state, "", location.pathname + (query.size ? `?${query}` : "") + location.hash);
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
  const anchor = document.createElement("a");
  Object.assign(anchor, { href: address, download: file.name });
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  say("");
}

async function copyLink() {
  const input = part(".link input");
  input.value = location.href; // the token that is pinned by now
  input.select();
  try {
    await navigator.clipboard.writeText(input.value);
    say("The link is copied.");
  } catch {
    say("Copy the link from the box."); // no clipboard without https
  }
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
