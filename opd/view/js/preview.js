/* The card that shows for a moment what is pointed at. */

import { fillCard } from "./card.js";

const PREVIEW_DELAY = 120; // ms; less would flicker under a passing pointer

export class Preview {
  constructor(view, element, template) {
    this.view = view;
    this.element = element;
    this.template = template;
    this.hovered = null; // { pane, index }
    this.timer = 0;
  }

  hide() {
    this.element.hidden = true;
  }

  indexIn(pane) {
    return this.hovered?.pane === pane ? this.hovered.index : null;
  }

  /** Light a token in text, graph and minimap; `pointer` is where, if not on the token itself. */
  hover(pane, index, pointer = null) {
    if (this.indexIn(pane) === index) return;
    clearTimeout(this.timer);
    const wasOpen = !this.element.hidden;
    this.light(false);
    if (index === null) {
      this.hide();
      this.hovered = null;
    } else {
      this.hovered = { pane, index };
      this.light(true);
      this.timer = setTimeout(() => this.show(pane, index, pointer), wasOpen ? 0 : PREVIEW_DELAY);
    }
    pane.draw();
  }

  light(on) {
    if (!this.hovered) return;
    const { pane, index } = this.hovered;
    for (const place of pane.review.together(index)) pane.sheet.spans[place]?.classList.toggle("pointed", on);
  }

  async show(pane, index, pointer) {
    if (this.view.isPinned(pane, index)) return this.hide(); // its card is there already
    const details = await this.view.detailsAt(pane, index);
    if (this.indexIn(pane) !== index) return;
    fillCard(this.element, this.template, pane, index, details);
    this.element.hidden = false;
    const token = pane.sheet.spans[index];
    this.place(
      pointer
        ? { left: pointer.clientX + 12, top: pointer.clientY - 12, bottom: pointer.clientY + 12 }
        : (token.getClientRects()[0] ?? token.getBoundingClientRect()),
    );
  }

  /** Below the token, or above where there is no room: never on its line. */
  place(at) {
    const { offsetWidth: width, offsetHeight: height, style } = this.element;
    const frame = this.view.root.getBoundingClientRect();
    const left = Math.min(at.left - frame.left, frame.width - width - 8);
    const fitsBelow = at.bottom + height + 16 < window.innerHeight;
    style.left = `${Math.max(8, left)}px`;
    style.top = `${fitsBelow ? at.bottom - frame.top + 10 : at.top - frame.top - height - 10}px`;
  }
}
