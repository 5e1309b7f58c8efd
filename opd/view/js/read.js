/* What student and teacher read before the text: the rendered prompt, token by token, folded until somebody looks. */

import { make, makeButton } from "./dom.js";
import { counted } from "./words.js";

const OLD = "Which texts these ids stand for was not recorded with this review.";
const PLAIN = "There is no chat template: the messages are read as plain text, one below the other.";

export class ReadPrompt {
  constructor(pane, element) {
    this.pane = pane;
    this.element = element;
    this.filled = ""; // with what
    element.addEventListener("toggle", () => this.fill());
  }

  show({ read, readAlike }) {
    const other = readAlike ? "; the teacher read the same" : `, and the teacher: ${counted(read.teacher, "token")}`;
    this.element.querySelector("summary").textContent = `What the student read: ${counted(read.student, "token")}${other}`;
    this.fill();
  }

  async fill() {
    const { view, group, review } = this.pane;
    const place = [view.key, group, view.sample].join();
    if (!this.element.open || !review || this.filled === place) return;
    this.filled = place;
    const found = await view.fetched.prompt(group, view.sample);
    if (this.filled !== place) return;
    this.element.querySelector(".sides")?.remove();
    this.element.append(found ? this.sides(found) : make("p", "sides", "What was read is not at hand."));
    if (!found) this.filled = "";
  }

  sides({ student, teacher }) {
    const box = make("div", "sides", sideOf("The student read", student));
    if (teacher) box.append(sideOf("The teacher read", teacher));
    const switchIds = makeButton("pill", "Ids", () => {
      switchIds.ariaPressed = String(box.toggleAttribute("data-ids"));
    });
    switchIds.ariaPressed = "false";
    switchIds.title = "Show the id of each token";
    const recorded = [student, teacher].some((side) => side?.pieces);
    box.prepend(make("p", "hint", ...(recorded ? ["Control tokens stand in frames. ", switchIds] : [])));
    return box;
  }
}

function sideOf(title, { ids, pieces, control, spelled, templated }) {
  const side = make("section", "", make("h4", "", title));
  if (!pieces) {
    side.append(make("p", "hint", OLD), make("p", "rendered", ids.join(" ")));
    return side;
  }
  if (!templated) side.append(make("p", "hint", PLAIN));
  const marks = pieces.map(() => "");
  for (const index of control) marks[index] = "control";
  for (const index of spelled) marks[index] = "spelled";
  const said = { control: ", a control token", spelled: ", text that spells a control token", "": "" };
  const tokens = pieces.flatMap((piece, index) => {
    const [, text, end] = /^(.*?)(\n?)$/s.exec(piece); // the id stands before the line break
    const span = make("span", `piece ${marks[index]}`.trim(), text);
    span.title = `token ${index + 1}, id ${ids[index]}${said[marks[index]]}`;
    span.dataset.id = ids[index];
    return [span, end];
  });
  if (spelled.length) side.append(make("p", "hint", "Dashed: somebody typed a control token, and it was read as text."));
  side.append(make("p", "rendered", ...tokens));
  return side;
}
