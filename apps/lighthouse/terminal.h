#pragma once

namespace lighthouse::app {

/// Whether lines on standard output can be drawn again with escape sequences: it is a terminal, not
/// a dumb one, and NO_COLOR does not ask for plain text.
bool is_terminal();

}  // namespace lighthouse::app
