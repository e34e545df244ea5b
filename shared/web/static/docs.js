// Renders the API description with the vendored Swagger UI, without requests to other servers.
globalThis.SwaggerUIBundle({
  url: `${document.body.dataset.root ?? ""}/openapi.json`,
  dom_id: "#swagger",
  // A link within the button that opens an operation cannot be operated by itself (WCAG 2.2, 4.1.2).
  deepLinking: false,
  validatorUrl: null,
  defaultModelsExpandDepth: -1,
  syntaxHighlight: { activated: false },
});
