// Shows a case as it is: its picture, its result, its files.
import { caseForm, downloads, element, picture } from "./case.js";

caseForm({
  render(answer) {
    document.querySelector("#result").append(
      element("h2", {}, "Result"),
      picture(answer, "What was found"),
      element("pre", {}, JSON.stringify(answer.result, null, 2)),
      downloads(answer),
    );
  },
});
