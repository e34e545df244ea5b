// Shows a case as it is: its picture, its result with verdicts on it, its files.
import { caseForm, downloads, element, picture } from "./case.js";
import { openReview, verdictBoxes } from "./review.js";

caseForm({
  render(answer) {
    // Where no list `findings` says otherwise, the result is one finding.
    const count = Array.isArray(answer.result.findings) ? answer.result.findings.length : 1;
    const review = openReview(answer, { changed: () => verdicts.forEach((one) => one.update()) });
    const called = (number) => (count === 1 ? "the result" : `finding ${number}`);
    const verdicts = Array.from({ length: count }, (_, n) => verdictBoxes(review, n + 1, called(n + 1)));
    document.querySelector("#result").append(
      element("h2", {}, "Result"),
      picture(answer, "What was found"),
      element("pre", {}, JSON.stringify(answer.result, null, 2)),
      ...verdicts.map((one, n) => element("p", {}, one.node, ` ${count === 1 ? "Right or wrong?" : called(n + 1)}`)),
      review.node,
      downloads(answer),
    );
  },
});
