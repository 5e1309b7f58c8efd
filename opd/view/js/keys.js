/* The keys of the text; review.html lists them in its help. */

/** Where a key goes from the pinned token, `here`; undefined if it goes nowhere. */
function targetOf(key, pane, here) {
  const last = pane.review.count - 1;
  const from = here ?? 0;
  switch (key) {
    case "ArrowRight": return here === null ? 0 : Math.min(here + 1, last);
    case "ArrowLeft": return Math.max(from - 1, 0);
    case "ArrowDown": return pane.sheet.lineNeighbour(from, 1);
    case "ArrowUp": return pane.sheet.lineNeighbour(from, -1);
    case "Home": return 0;
    case "End": return last;
    case "n": return pane.forkNeighbour(here ?? -1, 1);
    case "p": return pane.forkNeighbour(here ?? last + 1, -1);
  }
}

/** Do what a key does; whether it does anything. */
function act(key, view) {
  switch (key) {
    case "Enter":
    case "b": view.branchHere(); break;
    case "t": view.teacherLineHere(); break;
    case "/": view.finder.open(); break;
    case "?": view.parts.help.showModal(); break;
    case "Escape": view.unpin(); break;
    default: return false;
  }
  return true;
}

export function pressKey(view, pane, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !pane.review.count) return;
  const target = targetOf(event.key, pane, view.pinnedIndex(pane));
  if (target !== undefined) view.pin(pane, target);
  else if (!act(event.key, view)) return;
  event.preventDefault();
}
