/** Do what a key does in the text of a pane; review.html lists the keys in its help. */
export function pressKey(view, pane, event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !pane.review.count) return;
  const here = view.pinnedIndex(pane);
  const last = pane.review.count - 1;
  const from = here ?? 0;
  const target = {
    ArrowRight: () => (here === null ? 0 : Math.min(here + 1, last)),
    ArrowLeft: () => Math.max(from - 1, 0),
    ArrowDown: () => pane.sheet.lineNeighbour(from, 1),
    ArrowUp: () => pane.sheet.lineNeighbour(from, -1),
    Home: () => 0,
    End: () => last,
    n: () => pane.forkNeighbour(here ?? -1, 1),
    p: () => pane.forkNeighbour(here ?? last + 1, -1),
  }[event.key];
  const act = {
    Enter: () => view.branchHere(),
    b: () => view.branchHere(),
    t: () => view.teacherLineHere(),
    "/": () => view.finder.open(),
    "?": () => view.parts.help.showModal(),
    Escape: () => view.unpin(),
  }[event.key];
  if (target) view.pin(pane, target());
  else if (act) act();
  else return;
  event.preventDefault();
}
