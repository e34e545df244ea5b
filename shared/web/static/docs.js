// The API description, drawn by the vendored Swagger UI; nothing is fetched from elsewhere.
globalThis.SwaggerUIBundle({
  url: `${document.body.dataset.root ?? ""}/openapi.json`,
  dom_id: "#swagger",
  deepLinking: true,
  validatorUrl: null,
  defaultModelsExpandDepth: -1,
  syntaxHighlight: { activated: false },
});
