// The form of an application without one of its own: shows the picture of a case, its raw result, verdicts and files.
import { caseForm, downloads, element, picture } from "./case.js";
import { openReview, verdictBoxes } from "./review.js";

caseForm({
  render(answer) {
    // Without a list `findings`, the whole result is one finding.
    const count = Array.isArray(answer.result.findings) ? answer.result.findings.length : 1;
    const review = openReview(answer, { changed: () => verdicts.forEach((boxes) => boxes.update()) });
    const title = (number) => (count === 1 ? "the result" : `finding ${number}`);
    const verdicts = Array.from({ length: count }, (_, n) => verdictBoxes(review, n + 1, title(n + 1)));
    document.querySelector("#result").append(
      element("h2", {}, "Result"),
      picture(answer, "The result as a picture"),
      element("pre", {}, JSON.stringify(answer.result, null, 2)),
      ...verdicts.map((boxes, n) => element("p", {}, boxes.node, ` ${count === 1 ? "Is the result correct?" : title(n + 1)}`)),
      review.node,
      downloads(answer),
    );
  },
});
