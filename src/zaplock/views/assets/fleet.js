// A page of tables alone: their heads sort, the search leaves what matches.
"use strict";

searchable([...document.querySelectorAll("table.groups")].map(each => new Groups(each)), []);
document.body.dataset.ready = "1";
